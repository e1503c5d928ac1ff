"use strict";
/* The stage of a slider: two images, divided where the pointer or the range input says. */
function divider(box) {
  const find = (role) => box.querySelector(`[data-role="${role}"]`);
  const stage = find("stage");
  const position = find("position");
  const right = find("right-image");
  const line = find("line");

  function move() {
    const share = `${position.value}%`;
    right.style.clipPath = `inset(0 0 0 ${share})`;
    line.style.left = share;
  }

  function drag(event) {
    if (event.type === "pointermove" && event.buttons === 0) return;
    const area = stage.getBoundingClientRect();
    const share = (100 * (event.clientX - area.left)) / area.width;
    position.value = String(Math.min(100, Math.max(0, share)));
    position.dispatchEvent(new Event("input"));
  }

  position.addEventListener("input", move);
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  move();
  return {
    find,
    position,
    move,
    resize(width, height, shown = width) {
      stage.style.aspectRatio = `${width} / ${height}`;
      stage.style.maxWidth = `${shown}px`;
    },
    /* An entry has data (an address) and a caption; null: this side has no image. */
    show(side, entry, absent) {
      const image = find(`${side}-image`);
      image.hidden = !entry;
      find(`${side}-caption`).textContent = entry ? entry.caption : absent;
      if (entry) {
        image.src = entry.data;
        image.alt = entry.caption;
      }
    },
  };
}

/* Fill a menu with [value, text] pairs; return whether the value is among them, and choose it or the fallback. */
function fillMenu(menu, pairs, value, fallback = 0) {
  menu.replaceChildren(
    ...pairs.map(([key, text]) => Object.assign(document.createElement("option"), { value: String(key), textContent: text })),
  );
  const kept = pairs.some(([key]) => String(key) === String(value));
  if (pairs.length) menu.value = String(kept ? value : pairs[fallback][0]);
  return kept;
}
