"use strict";
(function () {
  const store = JSON.parse(document.getElementById("slider-data").textContent);
  const box = document.getElementById("slider");
  if (!box || !store.images.length) return;
  const find = (role) => box.querySelector(`[data-role="${role}"]`);
  const menus = { left: find("left"), right: find("right"), image: find("image") };
  const images = { left: find("left-image"), right: find("right-image") };
  const captions = { left: find("left-caption"), right: find("right-caption") };
  const stage = find("stage");
  const line = find("line");
  const position = find("position");
  const rates = find("rates");

  function fill(menu, names, chosen) {
    names.forEach((name, i) => {
      const option = document.createElement("option");
      option.value = String(i);
      option.textContent = name;
      menu.append(option);
    });
    menu.value = String(chosen);
  }

  function show() {
    const image = store.images[Number(menus.image.value)];
    const bpp = {};
    for (const side of ["left", "right"]) {
      const entry = image.entries[Number(menus[side].value)];
      images[side].hidden = !entry;
      captions[side].textContent = entry ? entry.caption : "this run does not have the image";
      if (entry) {
        images[side].src = entry.data;
        images[side].alt = entry.caption;
        bpp[side] = entry.bpp;
      }
    }
    stage.style.aspectRatio = `${image.width} / ${image.height}`;
    stage.style.maxWidth = `${image.width}px`;
    const both = bpp.left && bpp.right;
    const more = both ? 100 * (bpp.right / bpp.left - 1) : 0;
    rates.textContent = both
      ? `The right one has ${Math.abs(more).toFixed(0)} % ${more < 0 ? "fewer" : "more"} bits.`
      : "";
    rates.classList.toggle("far", Math.abs(more) > store.near);
  }

  function move() {
    const share = `${position.value}%`;
    images.right.style.clipPath = `inset(0 0 0 ${share})`;
    line.style.left = share;
  }

  function drag(event) {
    if (event.type === "pointermove" && event.buttons === 0) return;
    const area = stage.getBoundingClientRect();
    const share = (100 * (event.clientX - area.left)) / area.width;
    position.value = String(Math.min(100, Math.max(0, share)));
    move();
  }

  fill(menus.left, store.codecs, 0);
  fill(menus.right, store.codecs, store.second);
  fill(menus.image, store.images.map((image) => image.name), 0);
  Object.values(menus).forEach((menu) => menu.addEventListener("change", show));
  position.addEventListener("input", move);
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  show();
  move();
})();
