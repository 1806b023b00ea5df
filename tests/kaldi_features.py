"""Fun-ASR-Nano's feature extractor where torchaudio is not installed: its filter banks by kaldi-native-fbank, all else its own."""

from __future__ import annotations

import kaldi_native_fbank
import torch
from transformers.models.fun_asr_nano.feature_extraction_fun_asr_nano import FunAsrNanoFeatureExtractor


class KaldiExtractor(FunAsrNanoFeatureExtractor):
    def __init__(self, **options) -> None:
        options.setdefault("feature_size", 80)
        super().__init__(**options)

    def _extract_fbank_features(self, waveform: torch.Tensor) -> torch.Tensor:
        options = kaldi_native_fbank.FbankOptions()
        options.frame_opts.dither = 0.0
        options.frame_opts.window_type = self.window
        options.mel_opts.num_bins = self.feature_size
        computer = kaldi_native_fbank.OnlineFbank(options)
        # Kaldi pads nothing: audio that is no window long is padded with zeros by prunella.
        missing = max(0, self.frame_length * self.sampling_rate // 1000 - len(waveform))
        computer.accept_waveform(self.sampling_rate, [*waveform.tolist(), *[0.0] * missing])
        computer.input_finished()
        return torch.stack(
            [torch.tensor(computer.get_frame(row)) for row in range(computer.num_frames_ready)]
        )
