// The handler of the Record button: an attribute, because a script element inside an HTML widget is not run.
// MediaRecorder records, the audio decoder makes samples of it, and a 16-bit wav goes the way of a chosen file.
(async (button) => {
  const box = button.closest('.svclib-upload'), input = box.querySelector('input[type=file]');
  const show = (text) => { box.querySelector('.svclib-upload-state').textContent = text; };
  const fail = (error) => {
    box.recorder = null;
    show('The microphone gave no recording (' + (error.message || error.name) + '). Allow it in the browser and press '
      + 'Record again, or record with another program and upload the file.');
  };
  if (box.recorder) { box.recorder.stop(); return; }
  try {
    if (!navigator.mediaDevices || !window.MediaRecorder)
      throw new Error('this page may not use a microphone; open it through localhost or https');
    const stream = await navigator.mediaDevices.getUserMedia({audio: true});
    const recorder = new MediaRecorder(stream), parts = [];
    box.recorder = recorder;
    const began = Date.now();
    const clock = setInterval(() => {
      const seconds = (Date.now() - began) / 1000;
      show('recording, ' + seconds.toFixed(0) + ' s of at most 60 s');
      if (seconds >= 60) recorder.stop();
    }, 250);
    recorder.ondataavailable = (event) => parts.push(event.data);
    recorder.onstop = async () => {
      clearInterval(clock);
      stream.getTracks().forEach((track) => track.stop());
      box.recorder = null;
      button.textContent = '\u25cf Record';
      try {
        const data = await new Blob(parts, {type: recorder.mimeType}).arrayBuffer();
        const decoded = await new AudioContext().decodeAudioData(data);
        const length = Math.max(1, Math.round(decoded.duration * 24000));
        const offline = new OfflineAudioContext(1, length, 24000);
        const source = offline.createBufferSource();
        source.buffer = decoded; source.connect(offline.destination); source.start();
        const samples = (await offline.startRendering()).getChannelData(0);
        const bytes = new DataView(new ArrayBuffer(44 + 2 * samples.length));
        const word = (at, text) => [...text].forEach((c, i) => bytes.setUint8(at + i, c.charCodeAt(0)));
        word(0, 'RIFF'); bytes.setUint32(4, 36 + 2 * samples.length, true); word(8, 'WAVEfmt ');
        bytes.setUint32(16, 16, true); bytes.setUint16(20, 1, true); bytes.setUint16(22, 1, true);
        bytes.setUint32(24, 24000, true); bytes.setUint32(28, 2 * 24000, true);
        bytes.setUint16(32, 2, true); bytes.setUint16(34, 16, true);
        word(36, 'data'); bytes.setUint32(40, 2 * samples.length, true);
        samples.forEach((x, i) => bytes.setInt16(44 + 2 * i, Math.round(32767 * Math.max(-1, Math.min(1, x))), true));
        show('');
        input.recorded = [new File([bytes], 'recording.wav')];
        input.dispatchEvent(new Event('change'));
      } catch (error) { fail(error); }
    };
    recorder.start();
    button.textContent = '\u25a0 Stop';
  } catch (error) { fail(error); }
})(this)
