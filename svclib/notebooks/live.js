// The handler of the button of a LivePanel: an attribute, because a script element inside an HTML widget is not run.
// Blocks of the microphone go to the kernel through the hidden text area; each answer holds the converted sound so far.
// While an answer is awaited, blocks are collected and then sent together.
(async (button) => {
  const box = button.closest('.svclib-live'), area = box.querySelector('textarea');
  const state = box.querySelector('.svclib-live-state');
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  if (box.running) { box.running = false; return; }
  const id = Math.random().toString(36).slice(2), pending = [];
  const audio = new AudioContext({latencyHint: 'interactive'});
  let stream;
  try {
    if (!navigator.mediaDevices) throw new Error('this page may not use a microphone; open it through localhost or https');
    const wanted = {echoCancellation: false, noiseSuppression: false, autoGainControl: false};
    stream = await navigator.mediaDevices.getUserMedia({audio: wanted});
  } catch (error) {
    audio.close();
    state.textContent = 'The microphone gave no sound (' + (error.message || error.name) + '). Allow it in the browser and press Start again.';
    return;
  }
  const source = audio.createMediaStreamSource(stream), taken = audio.createScriptProcessor(2048, 1, 1);
  taken.onaudioprocess = (event) => pending.push(Int16Array.from(event.inputBuffer.getChannelData(0),
    (x) => Math.round(32767 * Math.max(-1, Math.min(1, x)))));
  source.connect(taken); taken.connect(audio.destination);  // its own output stays silent
  box.running = true; box.blocks = 0; box.dropouts = 0;
  button.textContent = '\u25a0 Stop';
  let next = 0, trip = 0;
  for (let n = 0; box.running; n++) {
    while (box.running && !pending.length) await pause(4);
    const bytes = pending.splice(0).flatMap((block) => [...new Uint8Array(block.buffer)]);
    let text = '';
    for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.slice(i, i + 8192));
    area.value = JSON.stringify({id, n, rate: audio.sampleRate, data: btoa(text)});
    for (const kind of ['input', 'change']) area.dispatchEvent(new Event(kind, {bubbles: true}));
    const sent = performance.now(), begin = id + ' ' + n + ' ';
    let answer = '';
    while (box.running && !(answer = box.querySelector('.svclib-live-answer').textContent.trim() + ' ').startsWith(begin)) {
      if (performance.now() - sent > 5000) { state.textContent = 'The notebook does not answer: a cell is running.'; }
      await pause(4);
    }
    if (!box.running) break;
    const made = answer.slice(begin.length).trim();
    if (made === 'stop') break;
    trip = trip ? 0.9 * trip + 0.1 * (performance.now() - sent) : performance.now() - sent;
    const raw = Uint8Array.from(atob(made), (c) => c.charCodeAt(0)), samples = new Int16Array(raw.buffer);
    if (!samples.length) continue;
    const piece = audio.createBuffer(1, samples.length, audio.sampleRate);
    piece.copyToChannel(Float32Array.from(samples, (x) => x / 32768), 0);
    if (next < audio.currentTime) { box.dropouts += next ? 1 : 0; next = audio.currentTime + 0.06; }
    if (next < audio.currentTime + 0.2) {  // what would come later than that is left out: the delay stays short
      const player = audio.createBufferSource();
      player.buffer = piece; player.connect(audio.destination); player.start(next);
      next += piece.duration; box.blocks += 1;
    }
    const late = 1000 * (next - audio.currentTime) + 1000 * 2048 / audio.sampleRate + Number(box.querySelector('[data-latency]')?.dataset.latency || 0);
    state.textContent = 'about ' + late.toFixed(0) + ' ms behind (' + trip.toFixed(0) + ' ms to the notebook and back), '
      + box.dropouts + ' gaps';
  }
  box.running = false;
  button.textContent = '\u25cf Start';
  stream.getTracks().forEach((track) => track.stop());
  audio.close();
})(this)
