// Runs beside the page, in the browser's audio thread: mixes the channels down and hands on blocks of 16-bit samples.
registerProcessor("microphone", class extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Int16Array(2048);
    this.at = 0;
    this.peak = 0;
    this.port.onmessage = () => this.flush();
  }
  flush() {
    this.port.postMessage({ pcm: this.block.slice(0, this.at).buffer, peak: this.peak });
    this.at = this.peak = 0;
  }
  process([channels]) {
    for (let i = 0; channels.length && i < channels[0].length; i++) {
      let sum = 0;
      for (const channel of channels) sum += channel[i];
      const sample = Math.max(-1, Math.min(1, sum / channels.length));
      this.peak = Math.max(this.peak, Math.abs(sample));
      this.block[this.at++] = Math.round(sample * 32767);
      if (this.at === this.block.length) this.flush();
    }
    return true;
  }
});
