// The handler of the button of a LivePanel: an attribute, because a script element inside an HTML widget is not run.
// Blocks of the microphone go to the kernel and come back converted, in order: through a socket of the kernel where page
// and kernel are on one computer, else through the hidden text areas in turn. Two are on their way at a time: Jupyter's
// server sends a small message on only after the page has sent another. Until then blocks are collected and sent together.
(async (button) => {
  const box = button.closest('.svclib-live'), state = box.querySelector('.svclib-live-state');
  const areas = box.querySelectorAll('textarea'), answers = box.querySelectorAll('.svclib-live-answer');
  let wake = () => {};
  const pause = () => new Promise((resolve) => { wake = resolve; setTimeout(resolve, 100); });
  const observer = new MutationObserver(() => wake());
  if (box.running) { box.running = false; return; }
  const id = Math.random().toString(36).slice(2), pending = [];
  const open = (sampleRate) => new AudioContext({latencyHint: 'interactive', sampleRate});
  let audio = open(16000), stream, source;  // the rate of ddsp instruments: resampled nowhere else
  try {
    if (!navigator.mediaDevices) throw new Error('this page may not use a microphone; open it through localhost or https');
    const wanted = {echoCancellation: false, noiseSuppression: false, autoGainControl: false};
    stream = await navigator.mediaDevices.getUserMedia({audio: wanted});
  } catch (error) {
    audio.close();
    state.textContent = 'The microphone gave no sound (' + (error.message || error.name) + '). Allow it in the browser and press Start again.';
    return;
  }
  try { source = audio.createMediaStreamSource(stream); } catch (error) {  // Firefox takes it at its own rate only
    audio.close(); audio = open(); source = audio.createMediaStreamSource(stream);
  }
  let socket = null;
  const received = [];  // from the socket, not played yet
  if (['localhost', '127.0.0.1', '[::1]'].includes(location.hostname)) try {
    const opened = new WebSocket(button.dataset.socket);
    opened.binaryType = 'arraybuffer';
    await new Promise((resolve, reject) => { opened.onopen = resolve; opened.onerror = reject; setTimeout(reject, 2000); });
    opened.onmessage = (event) => { received.push(event.data); wake(); };
    opened.onclose = () => { received.push('stop'); wake(); };
    opened.send(JSON.stringify({id, rate: audio.sampleRate}));
    socket = opened;
  } catch (error) { socket = null; }  // the kernel is behind a tunnel or in a container
  const send = (number, bytes) => {
    if (socket) { socket.send(bytes); return; }
    const area = areas[number % areas.length];
    let text = '';
    for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.slice(i, i + 8192));
    area.value = JSON.stringify({id, n: number, rate: audio.sampleRate, data: btoa(text)});
    for (const kind of ['input', 'change']) area.dispatchEvent(new Event(kind, {bubbles: true}));
  };
  const answer = (number) => {  // its bytes, 'stop', or undefined while there is none
    if (socket) return received.shift();
    const begin = id + ' ' + number + ' ', text = answers[number % areas.length].textContent.trim() + ' ';
    const made = text.startsWith(begin) ? text.slice(begin.length).trim() : undefined;
    return made === undefined || made === 'stop' ? made : Uint8Array.from(atob(made), (c) => c.charCodeAt(0)).buffer;
  };
  // In a thread of its own: nothing is lost while the page is busy.
  const size = audio.sampleRate > 24000 ? 768 : 256, capture = `registerProcessor('capture', class extends AudioWorkletProcessor {
    constructor() { super(); this.block = new Int16Array(${size}); this.n = 0; }
    process([[samples]]) {
      for (const x of samples || []) {
        this.block[this.n++] = Math.round(32767 * Math.max(-1, Math.min(1, x)));
        if (this.n === ${size}) { this.port.postMessage(this.block.slice()); this.n = 0; }
      }
      return true;
    }
  })`;
  await audio.audioWorklet.addModule(window.URL.createObjectURL(new Blob([capture], {type: 'text/javascript'})));
  const taken = new AudioWorkletNode(audio, 'capture');
  let next = 0, trip = 0, told = 0, cushion = 0.12;  // seconds that are kept before they play; more after a gap
  taken.port.onmessage = (event) => {
    pending.push(event.data);
    if (pending.length > 0.25 * audio.sampleRate / size) pending.splice(0, pending.length - 3);  // after a long wait
    wake();
  };
  source.connect(taken); taken.connect(audio.destination);  // its own output stays silent
  for (const answer of answers) observer.observe(answer, {childList: true, subtree: true, characterData: true});
  box.running = true; box.blocks = 0; box.dropouts = 0;
  button.textContent = '\u25a0 Stop';
  for (let n = 0, away = []; box.running;) {  // away: numbers and times of what was sent and is not answered yet
    if (pending.length > 1 && away.length < areas.length) {
      send(n, Uint8Array.from(pending.splice(0).flatMap((block) => [...new Uint8Array(block.buffer)])));
      away.push([n++, performance.now()]);
    }
    const [number, sent] = away[0] || [-1, Infinity], made = away.length ? answer(number) : undefined;
    if (made === undefined) {
      if (performance.now() - sent > 5000) { state.textContent = 'The notebook does not answer: a cell is running.'; }
      await pause();
      continue;
    }
    if (made === 'stop') break;
    away.shift();
    trip = trip ? 0.9 * trip + 0.1 * (performance.now() - sent) : performance.now() - sent;
    const samples = new Int16Array(made);
    // What waited for the instrument to be opened is left out: the delay is short from the beginning.
    const waited = performance.now() - sent > 100 || samples.length > 0.1 * audio.sampleRate;
    if (!samples.length || (waited && !next && number < 10)) continue;
    const piece = audio.createBuffer(1, samples.length, audio.sampleRate);
    piece.copyToChannel(Float32Array.from(samples, (x) => x / 32768), 0);
    if (next < audio.currentTime) {
      if (next) { box.dropouts += 1; cushion = Math.min(0.2, cushion + 0.02); }
      next = audio.currentTime + cushion;
    }
    if (next < audio.currentTime + cushion + 0.14) {  // what would come later is left out: the delay stays short
      const player = audio.createBufferSource();
      const rate = next < audio.currentTime + cushion + 0.02 ? 1 : 1.01;  // 17 cents, until it is caught up with
      player.buffer = piece; player.playbackRate.value = rate;
      player.connect(audio.destination); player.start(next);
      next += piece.duration / rate; box.blocks += 1;
    }
    const late = 1000 * (next - audio.currentTime + (pending.length + 1) * size / audio.sampleRate)
      + Number(box.querySelector('[data-latency]')?.dataset.latency || 0);
    if (performance.now() - told < 250) continue;
    told = performance.now();
    state.textContent = 'about ' + late.toFixed(0) + ' ms behind (' + trip.toFixed(0) + ' ms to the kernel and back), '
      + box.dropouts + ' gaps';
  }
  box.running = false;
  observer.disconnect();
  if (socket) { socket.onclose = null; socket.close(); }
  button.textContent = '\u25cf Start';
  stream.getTracks().forEach((track) => track.stop());
  audio.close();
})(this)
