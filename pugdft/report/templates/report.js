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

// Surfaces to turn: facets, paths and the floor's edges, drawn from the back to the front.
for (const box of document.querySelectorAll(".turning")) {
  const floats = (text) => new Float32Array(Uint8Array.from(atob(text), (each) => each.charCodeAt(0)).buffer);
  const colours = JSON.parse(box.dataset.colours);
  const root = document.documentElement;
  const panels = [...box.querySelectorAll("canvas")].map((canvas) => ({
    canvas,
    side: Number(canvas.dataset.side),
    heights: floats(canvas.dataset.heights),
    paths: JSON.parse(canvas.dataset.paths).map(floats),
    words: JSON.parse(canvas.dataset.words),
    limits: JSON.parse(canvas.dataset.limits),
  }));
  let turn = -0.9;
  let tilt = 0.5;
  const draw = ({ canvas, side, heights, paths, words, limits }) => {
    const scale = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    [canvas.width, canvas.height] = [width * scale, height * scale];
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    // A canvas takes no light-dark(): let the element resolve the page's colours.
    const colourOf = (name) => {
      canvas.style.color = `var(--${name})`;
      const found = getComputedStyle(canvas).color;
      canvas.style.color = "";
      return found;
    };
    const muted = colourOf("muted");
    const [sin, cos, up, flat] = [Math.sin(turn), Math.cos(turn), Math.sin(tilt), Math.cos(tilt)];
    const size = 0.31 * Math.min(width, 1.15 * height);
    // Across, down and towards the viewer; x and y from -1 to 1, z from 0 to 1.
    const place = (x, y, z) => {
      const [along, high] = [x * cos + y * sin, 1.4 * (z - 0.5)];
      const across = y * cos - x * sin;
      return [width / 2 + size * across, height / 2 - size * (high * flat - along * up), along * flat + high * up];
    };
    const line = (points) => {
      pen.beginPath();
      for (const [x, y] of points) pen.lineTo(x, y);
      pen.stroke();
    };
    const corners = [[-1, -1], [1, -1], [1, 1], [-1, 1]];
    pen.strokeStyle = muted;
    pen.lineWidth = 1;
    line([...corners, corners[0]].map(([x, y]) => place(x, y, 0)));

    const at = (number) => 2 * number / (side - 1) - 1;
    const points = Array.from({ length: side * side }, (_, number) =>
      place(at(Math.floor(number / side)), at(number % side), heights[number]));
    const parts = [];
    for (let i = 0; i + 1 < side; i++) for (let j = 0; j + 1 < side; j++) {
      const all = [i * side + j, i * side + j + 1, (i + 1) * side + j + 1, (i + 1) * side + j];
      const mean = all.reduce((sum, each) => sum + heights[each], 0) / 4;
      if (Number.isNaN(mean)) continue;  // the loss is not finite there
      const depth = all.reduce((sum, each) => sum + points[each][2], 0) / 4;
      const colour = colours[Math.min(colours.length - 1, Math.floor(mean * colours.length))];
      parts.push([depth, colour, all.map((each) => points[each]), false]);
    }
    paths.forEach((path, number) => {
      const colour = colourOf(`s${number % 8}`);
      for (let k = 0; k + 5 < path.length; k += 3) {
        const ends = [place(...path.slice(k, k + 3)), place(...path.slice(k + 3, k + 6))];
        parts.push([Math.max(ends[0][2], ends[1][2]) + 3 / side, colour, ends, true]);
      }
    });
    parts.sort((a, b) => a[0] - b[0]);
    for (const [, colour, places, isPath] of parts) {
      pen.lineWidth = isPath ? 2 : 0.6;
      pen.strokeStyle = isPath || side > 41 ? colour : "#0004";
      pen.fillStyle = colour;
      pen.beginPath();
      for (const [x, y] of places) pen.lineTo(x, y);
      if (!isPath) { pen.closePath(); pen.fill(); }
      pen.stroke();
    }

    // Names of the axes at the floor's two edges in front, of the height at the edge on the left.
    pen.fillStyle = colourOf("text");
    pen.font = `12px ${getComputedStyle(canvas).fontFamily}`;
    const name = (text, [x, y], align = "center") => {
      pen.textAlign = align;
      pen.fillText(text, align === "right" ? Math.max(x, pen.measureText(text).width + 1) : x, y);
    };
    const front = (a, b) => (place(...a, 0)[2] > place(...b, 0)[2] ? a : b);
    name(words[1], place(0, front([0, -1.3], [0, 1.3])[1], 0));
    name(words[2], place(front([-1.3, 0], [1.3, 0])[0], 0, 0));
    const edge = corners.reduce((a, b) => (place(...a, 0)[0] < place(...b, 0)[0] ? a : b));
    pen.strokeStyle = muted;
    pen.lineWidth = 1;
    line([place(...edge, 0), place(...edge, 1)]);
    const [foot, head] = [place(...edge, 0), place(...edge, 1)];
    name(limits[0], [foot[0] - 5, foot[1]], "right");
    name(limits[1], [head[0] - 5, head[1] + 9], "right");
    name(words[3], [4, 14], "left");
  };
  const drawAll = () => panels.forEach(draw);
  const turnBy = (across, down) => {
    turn -= across;
    tilt = Math.min(1.5, Math.max(0.05, tilt + down));
    drawAll();
  };
  for (const { canvas } of panels) {
    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      if (canvas.hasPointerCapture(event.pointerId)) turnBy(event.movementX / 120, event.movementY / 120);
    });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
      if (!step) return;
      event.preventDefault();
      turnBy(...step);
    });
  }
  box.hidden = false;
  for (const still of box.parentElement.querySelectorAll(".still")) still.hidden = true;
  new ResizeObserver(drawAll).observe(box);
  new MutationObserver(drawAll).observe(root, { attributes: true, attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
}
