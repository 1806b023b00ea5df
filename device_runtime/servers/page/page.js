import { chosen, nameOf, offer } from "./languages.js";
import { asWav, clock, cuesOf, draw, seconds, sentence, srt, wav } from "./recordings.js";

const $ = id => document.getElementById(id);
const base = new URL(".", location.href);
const lost = "The server does not answer. Is it still running?";
const asksKey = "This server asks for its key: enter it above, then try again.";
let key = sessionStorage.getItem("key") || "";
let facts = { phrases: [] };
let limits = { upload_bytes: Infinity };
let live = null;
let last = Promise.resolve();  // of the files that wait for one another

function tell(text) { $("state").textContent = text; $("alert").textContent = ""; }
function complain(text) { $("state").textContent = ""; $("alert").textContent = text; }
function askKey() { $("ask").hidden = false; $("key").focus(); return asksKey; }
function make(tag, text = "", kind = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  node.className = kind;
  return node;
}
function button(text, of, action) {
  const node = make("button", text);
  node.type = "button";
  node.setAttribute("aria-label", `${text} ${of}`);
  node.onclick = action;
  return node;
}
// As bytes of UTF-8: a header takes no other letters.
const bearer = () => "Bearer " + String.fromCharCode(...new TextEncoder().encode(key));

// --- The transcript: an entry for every recording, spoken or chosen ---

const entries = new Set();
const hint = $("hint"), player = $("player");

class Entry {
  constructor(title) {
    Object.assign(this, { title, open: true, cues: [], rows: new Map(), audio: null });
    this.node = make("article");
    this.lines = make("div", "", "lines");
    this.tools = make("div", "", "tools");
    this.tools.setAttribute("aria-live", "off");
    this.node.append(make("h3", title), this.lines, this.tools);
    hint.remove();
    $("said").append(this.node);
    entries.add(this);
    this.node.scrollIntoView({ block: "nearest" });
    refresh();
  }
  get text() { return [...this.lines.querySelectorAll(".text")].map(node => node.textContent).join("\n"); }
  /** Only what is final is read out by screen readers, as a paragraph of its own. */
  show(id, text, kind, note = "") {
    const row = make("p");
    if (kind === "partial") row.setAttribute("aria-live", "off");
    row.append(make("span", text, kind), make("small", note));
    if (this.rows.has(id)) this.rows.get(id).replaceWith(row);
    else this.lines.append(row);
    this.rows.set(id, row);
    row.scrollIntoView({ block: "nearest" });
    refresh();
  }
  forget(id) {
    this.rows.get(id)?.remove();
    this.rows.delete(id);
  }
  remark(text) { this.node.insertBefore(make("p", sentence(text), "note"), this.tools); }
  remove() {
    if (this.node.contains(document.activeElement)) $("transcript").focus();
    this.node.remove();
    entries.delete(this);
    if (!entries.size) $("said").append(hint);
    refresh();
  }
  /** Nothing more comes: offer what can be done with it. */
  finish() {
    this.open = false;
    this.tools.replaceChildren();
    if (!this.rows.size) this.show("nothing", facts.phrases.length ? "(none of the phrases was understood)" : "(no words were understood)", "nothing");
    if (this.audio) this.tools.append(button("Play", this.title, () => play(this)));
    if (this.text) this.tools.append(
      button("Save text", `of ${this.title}`, () => save(this, "txt", this.text + "\n")),
      button("Save subtitles", `of ${this.title}`, () => save(this, "srt", srt(this.cues))));
    refresh();
  }
}

function refresh() {
  $("copy").disabled = ![...entries].some(entry => entry.text);
  $("clear").disabled = ![...entries].some(entry => !entry.open);
}

function play(entry) {
  entry.node.append(player);
  if (player.src) URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(entry.audio);
  player.setAttribute("aria-label", entry.title);
  player.hidden = false;
  player.onerror = () => complain("This browser cannot play the recording, though the server could read it.");
  player.play().catch(() => {});
}

function save(entry, ending, text) {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
  link.download = entry.title.replace(/\.\w{2,4}$/, "").replace(/[\\/:]/g, ".") + "." + ending;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const found = phrase => !phrase ? "" : ` · ${phrase.label ?? "refused"} ${Object.entries(phrase.slots || {}).map(pair => pair.join(" = ")).join(", ")} · score ${phrase.score}`;

// --- The microphone ---

function hear(mine, { pcm, peak }) {
  if (!pcm.byteLength) return;
  mine.loudest = Math.max(mine.loudest, peak);
  mine.samples += pcm.byteLength / 2;
  mine.kept.push(pcm);
  if (mine.kept.length > 256) mine.parts.push(new Blob(mine.kept.splice(0)));  // which the browser may keep on disk
  mine.levels.push(peak);
  draw($("meter").firstElementChild, mine.levels);
  const heard = mine.samples / mine.context.sampleRate, behind = mine.socket.bufferedAmount / 2 / mine.context.sampleRate;
  $("elapsed").textContent = clock(heard);
  if (heard > 4 && mine.loudest < 0.002 && !mine.warned) {
    mine.warned = true;
    tell("Nothing is heard so far. Is the microphone muted?");
  }
  if (behind > 20) complain(`The connection is slow: the server is ${Math.round(behind)} s behind.`);
  if (mine.ready) mine.socket.send(pcm); else mine.held.push(pcm);
}

/** Not `disabled`, which would take the keyboard's focus away. */
const pause = wait => $("record").setAttribute("aria-disabled", wait);

async function start() {
  if (!navigator.mediaDevices || !window.AudioWorkletNode) {
    complain("Your browser gives the microphone only to pages whose address begins with https. Ask whoever runs this server for that address; until then you can choose a recording.");
    return;
  }
  pause(true);
  tell("Opening the microphone…");
  let stream, context;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true } });
    context = new AudioContext();
    await context.audioWorklet.addModule(new URL("microphone.js", base));
  } catch (error) {
    stream?.getTracks().forEach(track => track.stop());
    context?.close();
    pause(false);
    const why = { NotAllowedError: "this page may not use it; allow it in the browser's settings for this page", NotFoundError: "none is connected", NotReadableError: "another program may be using it" };
    complain(`No microphone: ${why[error.name] || "the browser could not open it"}.`);
    return;
  }
  const socket = new WebSocket(new URL("v1/live", base).href.replace(/^http/, "ws"));
  const tap = new AudioWorkletNode(context, "microphone");
  const entry = new Entry("Spoken at " + new Date().toLocaleTimeString("en", { hour: "2-digit", minute: "2-digit", hour12: false }));
  const mine = live = { stream, context, socket, tap, entry, ready: false, held: [], kept: [], parts: [], levels: [], samples: 0, loudest: 0 };
  tap.port.onmessage = ({ data }) => hear(mine, data);
  context.createMediaStreamSource(stream).connect(tap);
  socket.onopen = () => socket.send(JSON.stringify({ type: "start", sample_rate: context.sampleRate, api_key: key || undefined, language: chosen() }));
  socket.onmessage = ({ data }) => onEvent(mine, JSON.parse(data));
  socket.onclose = ({ code }) => onClose(mine, code);
  pause(false);
  $("record").classList.add("on");
  $("label").textContent = "Stop";
  $("meter").hidden = false;
}

function onEvent(mine, event) {
  const { entry, socket } = mine, id = event.utterance_id;
  if (event.type === "ready") {
    mine.ready = true;
    mine.held.splice(0).forEach(pcm => socket.send(pcm));
    if (mine.stopping) socket.send(JSON.stringify({ type: "stop" }));
    else tell("Listening. Speak.");
  } else if (event.type === "error") mine.failed = event.message;
  else if (event.type === "done") {
    tell(`${clock(event.seconds)} heard.`);
    (event.warnings || []).forEach(text => entry.remark(text));
  } else if (event.type === "partial") entry.show(id, event.text, "partial");
  else if (event.type === "final" && event.text) {
    const { latency, compute } = event.timings;
    entry.show(id, event.text, "text", `${event.t0.toFixed(1)} to ${event.t1.toFixed(1)} s · text ${seconds(latency)} after the last word · compute ${seconds(compute)}${found(event.phrase)}`);
    entry.cues.push(...cuesOf(event.text, event.t0, event.t1));
  } else if (id !== null && facts.phrases.length) entry.show(id, "(none of the phrases)", "nothing", found(event.phrase).slice(3));
  else if (id !== null) entry.forget(id);
  if (event.drops) complain(`${event.drops} samples were lost.`);
}

function onClose(mine, code) {
  release(mine);
  if (mine.samples) mine.entry.audio = wav([...mine.parts, ...mine.kept], mine.context.sampleRate);
  for (const row of mine.entry.lines.querySelectorAll(".partial")) row.className = "text";
  const refused = code === 1008 && /API key/.test(mine.failed);
  if (refused) complain(askKey());
  else if (code === 1013) complain("As many people as this server takes are speaking to it. Try again in a moment.");
  else if (mine.failed) complain(sentence(mine.failed));
  else if (code !== 1000) complain(mine.ready ? "The connection was lost: what was said until then is kept." : lost);
  if (mine.ready) mine.entry.finish(); else mine.entry.remove();
  if (live === mine) live = null;
  pause(false);
  $("record").classList.remove("on");
  $("label").textContent = "Record";
}

function release(mine) {
  mine.stream.getTracks().forEach(track => track.stop());
  if (mine.context.state !== "closed") mine.context.close();
  $("meter").hidden = true;
}

function stop() {
  const mine = live;
  if (!mine || mine.stopping) return;
  mine.stopping = true;
  pause(true);
  tell("Finishing…");
  mine.tap.port.postMessage("flush");
  setTimeout(() => {
    release(mine);
    if (mine.ready) mine.socket.send(JSON.stringify({ type: "stop" }));
  }, 100);
}

// --- Files ---

function inWords(name, status, error) {
  if (status === 401) return askKey();
  if (error.code === "unreadable_audio") return `${name} is no recording that can be read here. Choose one in wav, mp3, m4a, flac or ogg.`;
  return {
    408: "The upload took too long. Try again, with a better connection or a shorter recording.",
    413: `${name} is longer or larger than this server takes. Choose a shorter recording.`,
    429: "You have as many recordings at work here as one may. Wait until one is done.",
    503: "The server is busy, or being stopped. Try again in a moment.",
    507: "The server has no room for this recording now. Try again later, or with a shorter one.",
  }[status] || (status >= 500 ? "Something went wrong on the server. Try again." : `${name} was not transcribed: ${sentence(error.message || "")}`);
}

/** Send a recording; resolves to the last of the server's events. `fetch` does not say how much was sent. */
function send(content, name, signal, onSent, onDelta) {
  const form = new FormData();
  form.append("file", content, name);
  form.append("stream", "true");
  if (chosen()) form.append("language", chosen());
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    let read = 0, last = null;
    const take = () => {
      for (let end; request.status === 200 && (end = request.responseText.indexOf("\n\n", read)) >= 0; read = end + 2) {
        const event = JSON.parse(request.responseText.slice(read + 6, end));
        if (event.type === "transcript.text.delta") onDelta(event);
        else last = event;
      }
    };
    request.open("POST", new URL("v1/audio/transcriptions", base));
    if (key) request.setRequestHeader("Authorization", bearer());
    request.upload.onprogress = ({ loaded, total }) => onSent(loaded / total);
    request.onprogress = take;
    request.onerror = request.onabort = () => reject(new Error(lost));
    request.onload = () => {
      take();
      if (last?.type === "transcript.text.done") resolve(last);
      else if (request.status === 200) reject(new Error(last ? inWords(name, 400, last.error) : "The answer was cut short. Try again."));
      else {
        let error = {};
        try { error = JSON.parse(request.responseText).error; } catch { /* a proxy's own page */ }
        reject(Object.assign(new Error(inWords(name, request.status, error)), { code: error.code }));
      }
    };
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

async function upload(file) {
  const entry = new Entry(file.name), abort = new AbortController();
  const bar = make("progress"), doing = make("span", "Waiting…", "doing");
  let done;
  const turn = last;
  last = new Promise(resolve => { done = resolve; });
  const cancelled = new Promise((_, reject) => abort.signal.addEventListener("abort", reject));
  bar.setAttribute("aria-label", `Progress of ${file.name}`);
  entry.tools.append(bar, doing, button("Cancel", file.name, () => abort.abort()));
  entry.audio = file;
  const probe = new Audio(URL.createObjectURL(file));
  let text = "";
  tell("");
  const onSent = share => {
    if (share < 1) bar.value = share; else bar.removeAttribute("value");
    doing.textContent = share < 1 ? `Uploading, ${Math.round(100 * share)} %` : "Transcribing…";
  };
  const onDelta = event => {
    entry.show("text", text += event.delta, "partial");
    if (!(probe.duration < Infinity)) return;
    bar.value = Math.min(1, event.seconds / probe.duration);
    doing.textContent = `Transcribing, ${clock(event.seconds)} of ${clock(probe.duration)}`;
  };
  try {
    await Promise.race([turn, cancelled]);
    const began = performance.now();
    if (file.size > limits.upload_bytes) throw new Error(inWords(file.name, 413, {}));
    const answer = await send(file, file.name, abort.signal, onSent, onDelta).catch(async error => {
      if (error.code !== "unreadable_audio") throw error;
      const converted = await asWav(file).catch(() => { throw error; });
      return send(converted, file.name, abort.signal, onSent, onDelta);
    });
    const took = (performance.now() - began) / 1000;
    const note = `${answer.usage.seconds.toFixed(1)} s of audio in ${seconds(took)} · compute ${seconds(answer.timings.compute)}${(answer.phrases || []).map(found).join("")}`;
    entry.cues = answer.cues;
    if (answer.text) entry.show("text", answer.text, "text", note);
    (answer.warnings || []).forEach(warning => entry.remark(warning));
    entry.finish();
  } catch (error) {
    entry.remove();
    if (abort.signal.aborted) tell(`${file.name} was cancelled.`);
    else complain(error.message);
  }
  URL.revokeObjectURL(probe.src);
  turn.then(done);
}

// --- The page around them ---

async function copy(text, node) {
  try {
    await navigator.clipboard.writeText(text);
    tell("Copied.");
  } catch {  // as on every page whose address does not begin with https
    getSelection().selectAllChildren(node);
    tell("This browser lets the page copy nothing. It is selected: copy it by hand.");
  }
}

function describe({ id, language, languages = [] }) {
  const named = languages.length > 1 ? `${languages.length} languages` : nameOf(language);
  offer(languages, language);
  const { layers, layers_before: before, quantization, lower_case: lower, phrases } = facts;
  const size = !layers ? "" : layers < before ? `pruned to ${layers} of ${before} layers` : `${layers} layers`;
  $("model").replaceChildren(make("b", id), " ", [size, quantization, named].filter(Boolean).join(" · "));
  $("style").hidden = !lower;
  $("phrases").hidden = !phrases.length;
  // Labels and the names of slots are for programs; what lists hold comes last.
  const plain = phrase => phrase.replace(/^[A-Za-z_][\w.-]*\s*:\s+/, "").replace(/\{\s*(\w+)\s*:\s*\w+\s*\}/g, "{$1}");
  const isList = phrase => /^\{\s*\w+\s*\}\s*=/.test(phrase);
  const shown = [...phrases.filter(phrase => !isList(phrase)).map(plain), ...phrases.filter(isList)];
  $("phrases").querySelector("ul").replaceChildren(...shown.map(phrase => make("li", phrase)));
}

function showCalls(model, needsKey) {
  const api = new URL("v1", base).href, own = needsKey ? "KEY" : "none needed";
  $("curl").textContent = `curl ${needsKey ? "-H 'Authorization: Bearer KEY' \\\n  " : ""}-F file=@clip.wav \\\n  ${api}/audio/transcriptions`;
  $("python").textContent = `from openai import OpenAI\n\nclient = OpenAI(\n    base_url="${api}",\n    api_key="${own}",\n)\nwith open("clip.wav", "rb") as clip:\n    print(client.audio.transcriptions.create(\n        model="${model}", file=clip).text)`;
}

async function meet() {
  const health = await (await fetch(new URL("health", base))).json();
  showCalls(health.model, health.needs_key);
  const model = new URL("v1/models/" + encodeURIComponent(health.model), base);
  const answer = !health.needs_key || key ? await fetch(model, { headers: key ? { Authorization: bearer() } : {} }) : null;
  const known = answer?.ok ? await answer.json() : { id: health.model, language: health.language };
  if (known.facts) ({ facts, limits } = known);
  describe(known);
  const welcome = !health.needs_key || Boolean(answer?.ok);
  $("ask").hidden = welcome;
  return welcome;
}

$("record").onclick = () => $("record").getAttribute("aria-disabled") === "true" || (live ? stop() : start());
$("file").onchange = event => { for (const file of event.target.files) upload(file); event.target.value = ""; };
for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, event => {
  event.preventDefault();
  document.body.classList.toggle("over", kind === "dragover");
  if (kind === "drop") for (const file of event.dataTransfer.files) upload(file);
});
$("copy").onclick = () => copy([...entries].map(entry => entry.text).filter(Boolean).join("\n\n"), $("said"));
$("clear").onclick = () => {
  for (const entry of [...entries]) if (!entry.open) entry.remove();
  if (!player.isConnected) player.pause();
  $("transcript").focus();
  tell("");
};
for (const node of document.querySelectorAll("[data-copies]")) node.onclick = () => copy($(node.dataset.copies).textContent, $(node.dataset.copies));
$("details").checked = localStorage.getItem("timings") === "shown";
$("details").onchange = () => {
  localStorage.setItem("timings", $("details").checked ? "shown" : "hidden");
  document.body.classList.toggle("timings", $("details").checked);
};
document.body.classList.toggle("timings", $("details").checked);
$("ask").onsubmit = async event => {
  event.preventDefault();
  key = $("key").value;
  sessionStorage.setItem("key", key);
  if (await meet().catch(() => complain(lost))) tell("Thank you. You can speak now.");
  else if (!$("ask").hidden) complain("That is not this server's key.");
};
meet().catch(() => complain(lost));
