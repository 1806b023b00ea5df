"""The arms of the healing curve: what is cut, how, and what is done about it."""

from __future__ import annotations

from dataclasses import dataclass, replace

SIZES = (3, 6, 9)
DEEPEST_SIZE = 12
RIVAL = "full, same training"  # nothing cut: what a healed arm is to be compared with


@dataclass(frozen=True)
class Arm:
    """One point of the curve. `train` are the parts that are trained; empty: nothing is."""

    name: str
    drop: int
    strategy: str = "bridged"
    bridge: bool = True
    train: tuple[str, ...] = ()
    teacher: bool = False
    hidden_weight: float = 0.0
    lora: str = "all"
    stages: int = 1  # cuts of drop / stages layers, each healed for its share of the minutes
    decoder: str = "reference"  # "base": the wheel's untouched decoder, adapted only after the cut


@dataclass(frozen=True)
class Question:
    """What two arms that differ in one thing are to answer: whether `better` has fewer errors than `than`."""

    asked: str
    better: str
    than: str


def questions() -> list[Question]:
    """What the curve is asked, over the arms that there are."""
    of_each_size = [
        ("Bridged and not trained, or not cut?", "{} bridge", "full"),
        ("A block by angular distance, or by measured loss, before training?", "{} angular, bridge", "{} bridge"),
        ("Blocks by measured loss one after the other, or the best one block, before training?", "{} greedy, bridge", "{} bridge"),
        ("Bridged before training, or not?", "{} bridge, joint", "{} joint"),
        ("Projector and decoder together, or the decoder alone?", "{} bridge, joint", "{} bridge, decoder only"),
        ("With the full model as teacher, or without?", "{} bridge, joint, distilled", "{} bridge, joint"),
    ]  # fmt: skip
    asked = [
        Question(text, better.format(size), than.format(size))
        for text, better, than in of_each_size
        for size in SIZES
    ]
    nine = "9 bridge, joint, distilled"
    return [
        *asked,
        Question("Hidden states matched too, or not?", f"{nine}, hidden states", nine),
        Question("LoRA on all layers, or on the receiving one?", nine, f"{nine}, receiving layers"),
        Question("In three cuts, or in one?", "9 as 3 + 3 + 3, bridge, joint, distilled", nine),
        Question("Blocks by measured loss one after the other, or the best one block?", "9 greedy, bridge, joint, distilled", nine),
        Question("A block by angular distance, or by measured loss?", "9 angular, bridge, joint, distilled", nine),
        Question("The deepest layers, or a measured block?", "9 deepest, joint, distilled", nine),
        Question("Cut before the decoder is adapted to speech, or after?", "9 of the base decoder, bridge, joint", "9 bridge, joint"),
    ]  # fmt: skip


def all_arms() -> list[Arm]:
    """Every arm, cheap ones first; a trained one needs the minutes of the budget."""
    joint = ("projector", "decoder")
    arms = [Arm("full", 0, bridge=False)]
    for size in SIZES:
        arms.append(Arm(f"{size} cut", size, bridge=False))
        arms.append(Arm(f"{size} bridge", size))
        arms.append(Arm(f"{size} greedy, bridge", size, strategy="greedy"))
        arms.append(Arm(f"{size} angular, bridge", size, strategy="angular"))
        arms.append(Arm(f"{size} deepest, cut", size, strategy="deepest", bridge=False))
    arms.append(Arm(RIVAL, 0, bridge=False, train=joint))
    for size in SIZES:
        best = Arm(f"{size} bridge, joint, distilled", size, train=joint, teacher=True)
        arms += [
            best,
            replace(best, name=f"{size} bridge, joint", teacher=False),
            replace(best, name=f"{size} joint", teacher=False, bridge=False),
            replace(best, name=f"{size} bridge, decoder only", teacher=False, train=("decoder",)),
        ]
    nine = Arm("9 bridge, joint, distilled", 9, train=joint, teacher=True)
    arms += [
        # The best of the arms with 9 layers removed.
        replace(nine, name=f"{DEEPEST_SIZE} bridge, joint", drop=DEEPEST_SIZE, teacher=False),
        replace(nine, name="9 greedy, bridge, joint, distilled", strategy="greedy"),
        replace(nine, name="9 angular, bridge, joint, distilled", strategy="angular"),
        replace(nine, name="9 deepest, joint, distilled", strategy="deepest", bridge=False),
        replace(nine, name="9 as 3 + 3 + 3, bridge, joint, distilled", stages=3),
        replace(nine, name="9 bridge, joint, distilled, hidden states", hidden_weight=1.0),
        replace(nine, name="9 bridge, joint, distilled, receiving layers", lora="receiving"),
        replace(nine, name="9 of the base decoder, bridge, joint", teacher=False, decoder="base"),
    ]
    return arms
