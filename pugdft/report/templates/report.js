// The picture of a confusion matrix: name the pair of classes under the pointer.
for (const heat of document.querySelectorAll(".heat")) {
  const names = JSON.parse(heat.dataset.names);
  const sums = JSON.parse(heat.dataset.sums);
  const counts = new Map(JSON.parse(heat.dataset.cells).map(([row, column, count]) => [`${row} ${column}`, count]));
  const output = heat.querySelector("output");
  const image = heat.querySelector("image");
  output.hidden = false;
  const name = (event) => {
    const box = image.getBoundingClientRect();
    const cell = (offset, length) =>
      Math.min(names.length - 1, Math.max(0, Math.floor((names.length * offset) / length)));
    const row = cell(event.clientY - box.top, box.height);
    const column = cell(event.clientX - box.left, box.width);
    const count = counts.get(`${row} ${column}`) ?? 0;
    const answer = row === column ? "right" : `taken for ${names[column]}`;
    output.textContent = `${names[row]}, ${answer}: ${count} of ${sums[row]} images`;
  };
  image.addEventListener("pointermove", name);
  image.addEventListener("pointerdown", name);
}
