// The pitch lane, run when its picture, the spectrogram, is loaded: a script element inside an HTML widget is not run.
// Every change is sent as a whole file of edits through the hidden text area; the rules are those of conversion/f0_edit.py.
((picture) => {
  const face = picture.parentElement, box = picture.closest('.svclib-lane'), area = box.querySelector('textarea');
  const song = JSON.parse(face.dataset.lane), canvas = face.querySelector('canvas'), pen = canvas.getContext('2d');
  const part = (name) => face.querySelector('.t-lane-' + name);
  const NAMES = ['C', 'C#', 'D', 'D#', 'E', 'F', 'F#', 'G', 'G#', 'A', 'A#', 'B'];
  const time = (i) => song.first_s + i * song.step_s;
  const frame = (t) => Math.max(0, Math.min(song.cents.length, Math.ceil((t - song.first_s) / song.step_s - 1e-6)));
  const voiced = song.cents.filter((c) => c > 0).sort((a, b) => a - b);
  const low = (voiced[Math.floor(0.01 * voiced.length)] || 5000) - 900;
  const high = (voiced[Math.floor(0.99 * voiced.length)] || 6900) + 900;
  let edits = song.edits, now = [], history = [], marked = null, chosen = -1, drag = null;
  let shown = Math.min(song.seconds, 8), start = 0, playing = -1;

  const apply = (list) => {
    const cents = song.cents.slice();
    for (const edit of list) {
      const points = edit.curve, from = points ? points[0][0] : edit.start_s;
      const to = points ? points[points.length - 1][0] : edit.stop_s;
      for (let i = frame(from), k = 0; i < frame(to); i++) {
        if (!(cents[i] > 0)) continue;
        if (!points) { cents[i] += edit.shift_cents; continue; }
        while (k < points.length - 2 && points[k + 1][0] <= time(i)) k++;
        const [[a, ca], [b, cb]] = [points[k], points[k + 1]];
        cents[i] = ca + (cb - ca) * (time(i) - a) / (b - a);
      }
    }
    return cents;
  };
  const median = ([from, to]) => {
    const inside = now.slice(frame(from), frame(to)).filter((c) => c > 0).sort((a, b) => a - b);
    return inside.length ? inside[inside.length >> 1] : NaN;
  };
  const named = (cents) => {
    const note = Math.round(cents / 100), off = Math.round(cents - 100 * note);
    return NAMES[((note % 12) + 12) % 12] + (Math.floor(note / 12) - 1) + (off ? (off > 0 ? ' +' : ' ') + off + ' cents' : '');
  };
  const tell = () => {
    const note = song.notes[chosen];
    const text = note ? named(median(note)) + ', ' + note[0].toFixed(2) + ' to ' + note[1].toFixed(2) + ' s; ' : '';
    part('state').textContent = text + (edits.length === 1 ? '1 edit' : edits.length + ' edits');
    part('undo').disabled = !history.length && !edits.length;
  };
  const x = (t) => (t - start) / shown * canvas.clientWidth, y = (c) => (high - c) / (high - low) * canvas.clientHeight;
  const paint = () => {
    const width = canvas.clientWidth, height = canvas.clientHeight, dpr = window.devicePixelRatio || 1;
    if (!width) return;
    canvas.width = width * dpr; canvas.height = height * dpr;
    pen.setTransform(dpr, 0, 0, dpr, 0, 0);
    const column = picture.naturalWidth / song.seconds, row = picture.naturalHeight / (song.top - song.bottom);
    pen.globalAlpha = 0.75;
    pen.drawImage(picture, start * column, (song.top - high) * row, shown * column, (high - low) * row, 0, 0, width, height);
    pen.globalAlpha = 1;
    pen.font = '11px sans-serif';
    const scale = song.keys[part('key').value];
    for (let note = Math.ceil(low / 100); note < high / 100; note++) {
      if (!scale.includes(note % 12)) continue;
      pen.fillStyle = '#ffffff30'; pen.fillRect(0, y(100 * note + song.tuning), width, 1);
      if (scale.length < 12 || note % 12 === 0) { pen.fillStyle = '#ffffffb0'; pen.fillText(named(100 * note), 3, y(100 * note + song.tuning) - 2); }
    }
    if (marked) { pen.fillStyle = '#6ab0ff40'; pen.fillRect(x(marked[0]), 0, x(marked[1]) - x(marked[0]), height); }
    song.notes.forEach((note, i) => {
      if (note[1] < start || note[0] > start + shown) return;
      pen.strokeStyle = i === chosen ? '#ffffff' : '#8fd3ff'; pen.lineWidth = i === chosen ? 2 : 1;
      const middle = median(note);
      pen.strokeRect(x(note[0]), y(middle + 60), x(note[1]) - x(note[0]), y(middle - 60) - y(middle + 60));
    });
    const curve = (cents, colour, thick) => {
      pen.strokeStyle = colour; pen.lineWidth = thick; pen.beginPath();
      for (let i = frame(start), on = false; i < frame(start + shown); i++) {
        if (cents[i] > 0) { if (on) pen.lineTo(x(time(i)), y(cents[i])); else pen.moveTo(x(time(i)), y(cents[i])); }
        on = cents[i] > 0;
      }
      pen.stroke();
    };
    curve(song.cents, '#bbbbbb', 1);
    curve(now, '#ffa62b', 2);
    if (playing >= start && playing <= start + shown) { pen.fillStyle = '#ffffff'; pen.fillRect(x(playing), 0, 1.5, height); }
    if (drag && drag.stroke) { pen.strokeStyle = '#ff5d8f'; pen.lineWidth = 2; pen.beginPath(); drag.stroke.forEach(([t, c]) => pen.lineTo(x(t), y(c))); pen.stroke(); }
    tell();
  };
  const change = (list, remember = true) => {
    if (remember) history.push(edits);
    edits = list; now = apply(edits);
    area.value = JSON.stringify({format: 'svclib F0 edit', format_version: 1, song: song.name, edits});
    for (const kind of ['input', 'change']) area.dispatchEvent(new Event(kind, {bubbles: true}));
    paint();
  };
  const shifted = (list, [from, to], cents) => {  // moving a note again changes its last edit
    const last = list[list.length - 1], again = last && last.start_s === from && last.stop_s === to;
    const total = cents + (again ? last.shift_cents : 0);
    return [...again ? list.slice(0, -1) : list, ...total ? [{start_s: from, stop_s: to, shift_cents: total}] : []];
  };
  const place = (event) => {
    const edge = canvas.getBoundingClientRect();
    return [start + (event.clientX - edge.left) / edge.width * shown, high - (event.clientY - edge.top) / edge.height * (high - low)];
  };
  canvas.onpointerdown = (event) => {
    const [t, c] = place(event);
    canvas.setPointerCapture(event.pointerId);
    if (part('tool').value === 'draw') { drag = {stroke: [[t, c]]}; return; }
    const near = song.notes.findIndex((note) => note[0] <= t && t < note[1] && Math.abs(median(note) - c) < 200);
    chosen = near;
    drag = near >= 0 ? {note: song.notes[near], from: c, by: 0} : {mark: t};
    if (near < 0) marked = null;
    paint();
  };
  canvas.onpointermove = (event) => {
    if (!drag) return;
    const [t, c] = place(event);
    if (drag.stroke) drag.stroke.push([t, c]);
    else if (drag.note) { drag.by = 10 * Math.round((c - drag.from) / 10); now = apply(shifted(edits, drag.note, drag.by)); }
    else marked = [Math.max(0, Math.min(drag.mark, t)), Math.min(song.seconds, Math.max(drag.mark, t))];
    paint();
  };
  canvas.onpointerup = canvas.onpointercancel = () => {
    const done = drag;
    drag = null;
    if (done && done.note && done.by) change(shifted(edits, done.note, done.by));
    else if (done && done.stroke) {
      const points = [];
      for (const [t, c] of done.stroke.sort((a, b) => a[0] - b[0])) {
        const at = Math.round(1000 * Math.max(0, Math.min(song.seconds, t))) / 1000;
        if (!points.length || at >= points[points.length - 1][0] + 0.02) points.push([at, Math.round(Math.max(0, Math.min(12700, c)))]);
      }
      if (points.length > 1) change([...edits, {curve: points}]); else paint();
    } else paint();
  };
  canvas.onkeydown = (event) => {
    const by = {ArrowUp: 1, ArrowDown: -1}[event.key] * (event.shiftKey ? 10 : 100);
    if (!by || chosen < 0) return;
    event.preventDefault(); event.stopPropagation();
    change(shifted(edits, song.notes[chosen], by));
  };
  part('snap').onclick = () => {
    const [from, to] = marked || [start, start + shown], scale = song.keys[part('key').value];
    let list = edits;
    for (const note of song.notes) {
      const middle = median(note), wanted = (middle - song.tuning) / 100;
      if ((note[0] + note[1]) / 2 < from || (note[0] + note[1]) / 2 > to || !(middle > 0)) continue;
      const near = [...Array(13).keys()].map((i) => Math.round(wanted) - 6 + i).filter((m) => scale.includes(((m % 12) + 12) % 12));
      const best = near.reduce((a, b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a));
      list = shifted(list, note, Math.round(100 * best + song.tuning - middle));
    }
    if (list !== edits && JSON.stringify(list) !== JSON.stringify(edits)) change(list);
  };
  part('undo').onclick = () => change(history.length ? history.pop() : edits.slice(0, -1), false);
  const look = (seconds, from) => {
    shown = Math.max(0.5, Math.min(song.seconds, seconds));
    start = Math.max(0, Math.min(song.seconds - shown, from));
    part('scroll').max = Math.max(0, song.seconds - shown); part('scroll').value = start;
    paint();
  };
  part('in').onclick = () => look(shown / 2, start + shown / 4);
  part('out').onclick = () => look(shown * 2, start - shown / 2);
  part('scroll').oninput = () => { start = Number(part('scroll').value); paint(); };
  part('key').onchange = paint;
  // Song and results are in time with each other: the place in any sound of the panel that plays is shown here.
  const panel = box.closest('.svclib-convert') || box;
  const follow = (event) => {
    if (!canvas.isConnected) { panel.removeEventListener('timeupdate', follow, true); return; }
    playing = event.target.currentTime;
    if (!drag && !event.target.paused && (playing < start || playing > start + shown)) look(shown, playing);
    else paint();
  };
  panel.addEventListener('timeupdate', follow, true);
  new ResizeObserver(paint).observe(canvas);
  now = apply(edits);
  look(shown, 0);
  face.dataset.ready = 'yes';
})(this)
