(function () {
  const store = JSON.parse(document.getElementById("slider-data").textContent);
  const box = document.getElementById("slider");
  if (!box || !store.images.length) return;
  const slider = divider(box);
  const menus = { left: slider.find("left"), right: slider.find("right"), image: slider.find("image") };
  const rates = slider.find("rates");

  function show() {
    const image = store.images[Number(menus.image.value)];
    const bpp = {};
    for (const side of ["left", "right"]) {
      const entry = image.entries[Number(menus[side].value)];
      slider.show(side, entry, "this run does not have the image");
      bpp[side] = entry && entry.bpp;
    }
    slider.resize(image.width, image.height);
    const both = bpp.left && bpp.right;
    const more = both ? 100 * (bpp.right / bpp.left - 1) : 0;
    rates.textContent = both
      ? `The right one has ${Math.abs(more).toFixed(0)} % ${more < 0 ? "fewer" : "more"} bits.`
      : "";
    rates.classList.toggle("far", Math.abs(more) > store.near);
  }

  const numbered = (names) => names.map((name, i) => [i, name]);
  fillMenu(menus.left, numbered(store.codecs), 0);
  fillMenu(menus.right, numbered(store.codecs), store.second);
  fillMenu(menus.image, numbered(store.images.map((image) => image.name)), 0);
  Object.values(menus).forEach((menu) => menu.addEventListener("change", show));
  show();
})();
