// The handler of the file input of an Uploader: an attribute, because a script element inside an HTML widget is not run.
// Files that were chosen, dropped (folders too) or recorded are sent in slices through the hidden text area; the kernel
// answers each slice, so that no message is longer than a server takes and none waits for the one before.
(async (input) => {
  const box = input.closest('.svclib-upload'), area = box.querySelector('textarea');
  const bar = box.querySelector('progress'), state = box.querySelector('.svclib-upload-state');
  const face = box.querySelector('.svclib-upload-button'), label = face.dataset.label;
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  const ask = (object, method) => new Promise((resolve, reject) => object[method](resolve, reject));
  const walk = async (entry) => {
    if (!entry) return [];
    if (entry.isFile) return [await ask(entry, 'file')];
    const reader = entry.createReader(), found = [];
    for (let some; (some = await ask(reader, 'readEntries')).length;)
      for (const inside of some) found.push(...await walk(inside));
    return found;
  };
  const base64 = (blob) => new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.split(',')[1] || '');
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
  const answer = async (begin) => {
    const since = Date.now();
    for (;; await pause(15)) {
      const text = box.querySelector('.svclib-upload-answer').textContent.trim();
      if (text.startsWith(begin)) return text.slice(begin.length);
      if (!box.sending) return 'stop';
      if (Date.now() - since > 8000)
        state.textContent = 'The notebook does not answer yet. If a cell is running, the upload goes on when it has '
          + 'ended; if none is, run the cell of this panel again.';
    }
  };
  const files = [...input.recorded || input.files];
  for (const entry of input.dropped || []) files.push(...await walk(entry));
  input.recorded = input.dropped = null;
  input.value = '';
  box.queue = [...box.queue || [], ...files];
  if (box.sending || !box.queue.length) return;
  box.sending = true;
  face.textContent = '\u25a0 Stop';
  bar.hidden = false;
  const batch = Math.random().toString(36).slice(2);
  while (box.sending && box.queue.length) {
    const file = box.queue.shift(), id = Math.random().toString(36).slice(2), of = (file.size / 1e6).toFixed(1);
    try {
      for (let at = 0; box.sending && (at === 0 || at < file.size);) {
        const slice = file.slice(at, at + 500000);
        const data = await base64(slice);
        area.value = JSON.stringify({batch, id, name: file.name, size: file.size, at, data});
        for (const kind of ['input', 'change']) area.dispatchEvent(new Event(kind, {bubbles: true}));
        if (await answer(id + ' ' + at + ' ') !== 'ok') break;
        at += Math.max(1, slice.size);
        bar.value = Math.min(1, at / Math.max(1, file.size));
        state.textContent = file.name + ': ' + (Math.min(at, file.size) / 1e6).toFixed(1) + ' of ' + of + ' MB';
      }
    } catch (error) { box.queue = []; state.textContent = file.name + ' cannot be read: ' + error.message; await pause(3000); }
  }
  box.sending = false; box.queue = [];
  state.textContent = ''; bar.hidden = true; bar.value = 0; face.textContent = label;
})(this)
