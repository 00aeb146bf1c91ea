// The handler of the button of a LivePanel: an attribute, because a script element inside an HTML widget is not run.
// Blocks of the microphone go to the kernel through the hidden text areas in turn; each answer holds the converted sound
// so far. Two messages are on their way at a time: the server sends a small one on only after the page has sent another.
// Until then blocks are collected and then sent together.
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
  const size = audio.sampleRate > 24000 ? 1024 : 256, taken = audio.createScriptProcessor(size, 1, 1);
  let next = 0, trip = 0, told = 0, cushion = 0.135;  // seconds that are kept before they play; more after a gap
  taken.onaudioprocess = (event) => {
    pending.push(Int16Array.from(event.inputBuffer.getChannelData(0), (x) => Math.round(32767 * Math.max(-1, Math.min(1, x)))));
    if (pending.length > 0.25 * audio.sampleRate / size) pending.splice(0, pending.length - 3);  // after a long wait
    wake();
  };
  source.connect(taken); taken.connect(audio.destination);  // its own output stays silent
  for (const answer of answers) observer.observe(answer, {childList: true, subtree: true, characterData: true});
  box.running = true; box.blocks = 0; box.dropouts = 0;
  button.textContent = '\u25a0 Stop';
  for (let n = 0, away = []; box.running;) {  // away: numbers and times of what was sent and is not answered yet
    if (pending.length > 1 && away.length < areas.length) {
      const bytes = pending.splice(0).flatMap((block) => [...new Uint8Array(block.buffer)]), area = areas[n % areas.length];
      let text = '';
      for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.slice(i, i + 8192));
      area.value = JSON.stringify({id, n, rate: audio.sampleRate, data: btoa(text)});
      for (const kind of ['input', 'change']) area.dispatchEvent(new Event(kind, {bubbles: true}));
      away.push([n++, performance.now()]);
    }
    const [number, sent] = away[0] || [-1, Infinity], begin = id + ' ' + number + ' ';
    const answer = away.length ? answers[number % areas.length].textContent.trim() + ' ' : '';
    if (!answer.startsWith(begin)) {
      if (performance.now() - sent > 5000) { state.textContent = 'The notebook does not answer: a cell is running.'; }
      await pause();
      continue;
    }
    away.shift();
    const made = answer.slice(begin.length).trim();
    if (made === 'stop') break;
    trip = trip ? 0.9 * trip + 0.1 * (performance.now() - sent) : performance.now() - sent;
    const raw = Uint8Array.from(atob(made), (c) => c.charCodeAt(0)), samples = new Int16Array(raw.buffer);
    if (!samples.length) continue;
    const piece = audio.createBuffer(1, samples.length, audio.sampleRate);
    piece.copyToChannel(Float32Array.from(samples, (x) => x / 32768), 0);
    if (next < audio.currentTime) {
      if (next) { box.dropouts += 1; cushion = Math.min(0.2, cushion + 0.02); }
      next = audio.currentTime + cushion;
    }
    if (next < audio.currentTime + cushion + 0.14) {  // what would come later is left out: the delay stays short
      const player = audio.createBufferSource();
      const rate = next < audio.currentTime + cushion + 0.03 ? 1 : 1.01;  // 17 cents, until it is caught up with
      player.buffer = piece; player.playbackRate.value = rate;
      player.connect(audio.destination); player.start(next);
      next += piece.duration / rate; box.blocks += 1;
    }
    const late = 1000 * (next - audio.currentTime + (pending.length + 1) * size / audio.sampleRate)
      + Number(box.querySelector('[data-latency]')?.dataset.latency || 0);
    if (performance.now() - told < 250) continue;
    told = performance.now();
    state.textContent = 'about ' + late.toFixed(0) + ' ms behind (' + trip.toFixed(0) + ' ms to the notebook and back), '
      + box.dropouts + ' gaps';
  }
  box.running = false;
  observer.disconnect();
  button.textContent = '\u25cf Start';
  stream.getTracks().forEach((track) => track.stop());
  audio.close();
})(this)
