// Run when the picture at the end of a FramedPage's mailbox is loaded: a script element inside an HTML widget is not run.
// A frame that has come is moved out of the mailbox, which the kernel empties then; where none is, the kernel is asked.
(function take(picture, tries) {
  const box = picture.closest('.svclib-page'), place = box?.querySelector('.svclib-page-place');
  const area = box?.querySelector('textarea');
  if (!place || !area) { if (tries) setTimeout(take, 50, picture, tries - 1); return; }  // not all is there yet
  const frame = picture.parentElement.querySelector('iframe'), shown = place.querySelector('iframe');
  if (!frame && shown) return;
  if (frame && frame.srcdoc !== shown?.srcdoc) place.replaceChildren(frame);
  area.value = (frame ? 'taken ' : 'wanted ') + Math.random();
  for (const kind of ['input', 'change']) area.dispatchEvent(new Event(kind, {bubbles: true}));
})(this, 200)
