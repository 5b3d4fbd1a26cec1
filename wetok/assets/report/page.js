"use strict";
// Sliders are made here, from the pictures that are on the page already.
for (const card of document.querySelectorAll(".card")) {
  const original = card.querySelector("img.original");
  const again = card.querySelector("img.again");
  if (!original || !again) continue;
  const figure = document.createElement("figure");
  figure.className = "compare";
  const stack = document.createElement("div");
  stack.className = "stack";
  for (const image of [original, again]) {
    const copy = image.cloneNode();
    copy.removeAttribute("id");
    copy.className = "";
    copy.draggable = false;
    stack.append(copy);
  }
  const range = document.createElement("input");
  range.type = "range";
  range.min = 0;
  range.max = 100;
  range.step = 0.5;
  range.value = 50;
  range.setAttribute("aria-label", "Original to the left, reconstruction to the right of this share");
  const move = () => {
    stack.style.setProperty("--at", range.value + "%");
    range.setAttribute("aria-valuetext", Math.round(range.value) + "% original");
  };
  range.addEventListener("input", move);
  const follow = (event) => {
    const box = stack.getBoundingClientRect();
    range.value = (100 * (event.clientX - box.left)) / box.width;
    move();
  };
  stack.addEventListener("pointerdown", (event) => {
    stack.setPointerCapture(event.pointerId);
    follow(event);
  });
  stack.addEventListener("pointermove", (event) => {
    if (event.buttons) follow(event);
  });
  const caption = document.createElement("figcaption");
  caption.textContent = "Original \u25c2 \u25b8 reconstruction";
  figure.append(stack, range, caption);
  card.querySelector(".pictures").prepend(figure);
  move();
}

// A click on a heading sorts by it; a second one turns the order round. Missing values stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      const value = (row) => row.cells[column].dataset.value;
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = column ? Number(x) - Number(y) : x.localeCompare(y, "en", { numeric: true });
        return up ? order : -order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
