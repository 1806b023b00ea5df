// What recordings are made of, and made into: WAV, levels that are drawn, times, subtitles.

const still = matchMedia("(prefers-reduced-motion: reduce)");
export const clock = value => Math.floor(value / 60) + ":" + String(Math.floor(value % 60)).padStart(2, "0");
export const seconds = value => value < 1 ? Math.round(value * 1000) + " ms" : value.toFixed(2) + " s";
export const sentence = text => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?)]$/.test(text) ? "" : ".");

export function srt(cues) {
  const time = at => new Date(Math.round(at * 1000)).toISOString().slice(11, 23).replace(".", ",");
  return cues.map((cue, i) => `${i + 1}\n${time(cue.start)} --> ${time(cue.end)}\n${cue.text}\n`).join("\n");
}

/** Cues of at most two lines of 42 letters, in shares of the time: for what was spoken; recordings get the server's own. */
export function cuesOf(text, start, end) {
  const lines = text.match(/.{1,42}(?:\s+|$)|\S{42}/g) || [];
  const share = (end - start) / text.length, cues = [];
  for (let i = 0; i < lines.length; i += 2) {
    const pair = lines.slice(i, i + 2);
    const until = start + share * pair.join("").length;
    cues.push({ start, end: until, text: pair.map(line => line.trim()).join("\n") });
    start = until;
  }
  return cues;
}

/** 16-bit samples, in parts, as a WAV file. */
export function wav(parts, rate) {
  const bytes = parts.reduce((sum, part) => sum + (part.size ?? part.byteLength), 0);
  const head = new DataView(new ArrayBuffer(44));
  const words = [0x52494646, 36 + bytes, 0x57415645, 0x666d7420, 16, 0x10001, rate, 2 * rate, 0x100002, 0x64617461, bytes];
  words.forEach((word, i) => head.setUint32(4 * i, word, ![0, 2, 3, 9].includes(i)));
  return new Blob([head, ...parts], { type: "audio/wav" });
}

/** The levels of the last seconds as bars; the last one alone where the system asks for little motion. */
export function draw(canvas, levels) {
  const scale = devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const brush = canvas.getContext("2d");
  brush.scale(scale, scale);
  brush.fillStyle = getComputedStyle(canvas).color;
  const room = Math.floor(width / 6), loud = level => Math.sqrt(Math.min(1, level));
  if (still.matches) {
    brush.fillRect(0, height / 2 - 4, Math.max(2, loud(levels[levels.length - 1]) * width), 8);
    return;
  }
  if (levels.length > room) levels.splice(0, levels.length - room);
  levels.forEach((level, i) => {
    const tall = Math.max(3, loud(level) * height);
    brush.beginPath();
    const bar = [(room - levels.length + i) * 6, (height - tall) / 2, 4, tall];
    if (brush.roundRect) brush.roundRect(...bar, 2); else brush.rect(...bar);
    brush.fill();
  });
}

/** What the server cannot decode the browser often can: then it is sent as WAV, 16 kHz, mono. */
export async function asWav(file) {
  const decoded = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(await file.arrayBuffer());
  const channels = Array.from({ length: decoded.numberOfChannels }, (_, i) => decoded.getChannelData(i));
  const pcm = new Int16Array(decoded.length).map((_, i) => {
    const sum = channels.reduce((total, channel) => total + channel[i], 0);
    return Math.round(Math.max(-1, Math.min(1, sum / channels.length)) * 32767);
  });
  return wav([pcm], 16000);
}
