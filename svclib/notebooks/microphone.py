"""A microphone for notebooks: records in the browser and hands the sound to the kernel as a wav file.

The browser's MediaRecorder records, its audio decoder turns that into samples at 24 kHz, and 16-bit wav travels through
a hidden text widget: so no ffmpeg is needed, and the same code works in JupyterLab, classic Notebook and Colab. A
browser gives its microphone only to pages from localhost or https, after asking.
"""

import base64
import binascii

import ipywidgets as W

from svclib.analysis import html as page
from svclib.notebooks import base as widgets

MAX_SECONDS = 60
RATE_HZ = 24000

# An inline handler, because a script element inside an HTML widget is not run.
_SCRIPT = """
(async (button) => {
  const box = button.closest('.svclib-record'), area = box.querySelector('textarea');
  const show = (text) => { box.querySelector('.svclib-record-state').textContent = text; };
  const send = (text) => {
    area.value = text;
    for (const kind of ['input', 'change']) area.dispatchEvent(new Event(kind, {bubbles: true}));
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
      show('recording, ' + seconds.toFixed(0) + ' s of at most @MAX@ s');
      if (seconds >= @MAX@) recorder.stop();
    }, 250);
    recorder.ondataavailable = (event) => parts.push(event.data);
    recorder.onstop = async () => {
      clearInterval(clock);
      stream.getTracks().forEach((track) => track.stop());
      box.recorder = null;
      button.textContent = '\\u25cf Record';
      try {
        const data = await new Blob(parts, {type: recorder.mimeType}).arrayBuffer();
        const decoded = await new AudioContext().decodeAudioData(data);
        const length = Math.max(1, Math.round(decoded.duration * @RATE@));
        const offline = new OfflineAudioContext(1, length, @RATE@);
        const source = offline.createBufferSource();
        source.buffer = decoded; source.connect(offline.destination); source.start();
        const samples = (await offline.startRendering()).getChannelData(0);
        const bytes = new DataView(new ArrayBuffer(44 + 2 * samples.length));
        const word = (at, text) => [...text].forEach((c, i) => bytes.setUint8(at + i, c.charCodeAt(0)));
        word(0, 'RIFF'); bytes.setUint32(4, 36 + 2 * samples.length, true); word(8, 'WAVEfmt ');
        bytes.setUint32(16, 16, true); bytes.setUint16(20, 1, true); bytes.setUint16(22, 1, true);
        bytes.setUint32(24, @RATE@, true); bytes.setUint32(28, 2 * @RATE@, true);
        bytes.setUint16(32, 2, true); bytes.setUint16(34, 16, true);
        word(36, 'data'); bytes.setUint32(40, 2 * samples.length, true);
        samples.forEach((x, i) => bytes.setInt16(44 + 2 * i, Math.round(32767 * Math.max(-1, Math.min(1, x))), true));
        const reader = new FileReader();
        reader.onload = () => { show(''); send(Date.now() + ',' + reader.result.split(',')[1]); };
        reader.readAsDataURL(new Blob([bytes]));
      } catch (error) { show(''); send('error:' + Date.now() + ':' + error.message); }
    };
    recorder.start();
    button.textContent = '\\u25a0 Stop';
  } catch (error) { box.recorder = null; send('error:' + Date.now() + ':' + (error.message || error.name)); }
})(this)
"""


def recorder(message: widgets.Message, receive) -> W.VBox:
    """A Record button; ``receive(wav_bytes)`` is called with each recording, failures are shown in ``message``."""
    area = W.Textarea(continuous_update=True, layout=W.Layout(display="none"))
    code = _SCRIPT.replace("@MAX@", str(MAX_SECONDS)).replace("@RATE@", str(RATE_HZ))
    face = W.HTML(
        f'<button type="button" class="svclib-record-button jupyter-button widget-button" style="width:auto" '
        f'title="{page.text(f"record up to {MAX_SECONDS} s with the microphone")}" '
        f'onclick="{page.text(code)}">● Record</button> <span class="svclib-record-state" style="{page.FONT}"></span>'
    )

    @widgets.guarded(message)
    def changed(change):
        if not change["new"]:
            return
        text = change["new"]
        area.value = ""  # the sound is not kept in the widget
        if text.startswith("error:"):
            reason = text.split(":")[-1].strip()
            message.show(
                f"The microphone gave no recording ({reason}). Allow it in the browser and press Record again, "
                "or record with another program and use Upload.",
                "warning",
            )
            return
        receive(decode(text))

    area.observe(changed, "value")
    box = W.VBox([face, area])
    box.add_class("svclib-record")
    return box


def decode(text: str) -> bytes:
    """The wav bytes of what the browser sent, ``number,base64``; raises ValueError if it is not a recording."""
    try:
        data = base64.b64decode(text.partition(",")[2], validate=True)
    except binascii.Error:
        data = b""
    if data[:4] != b"RIFF" or len(data) <= 44:
        raise ValueError("The browser sent an empty or damaged recording. Press Record again, or use Upload.")
    return data
