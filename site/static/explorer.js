// Draws an elementary cellular automaton row by row. The settings stand in the address, so that a link can hold them.
{
  const form = document.querySelector("form.explorer");
  const canvas = form.querySelector("canvas");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const { rule, slider, start, seed, boundary, width, speed, pause, told } = form.elements;
  const settings = { rule, start, seed, boundary, width, speed };
  const classes = ["", "I, uniform", "II, periodic", "III, chaotic", "IV, complex"];
  let rows, drawn, begun, frame;

  // --- the automaton -----------------------------------------------------------------------------------------------

  const next = (row) => {
    const ring = boundary.value === "ring", last = row.length - 1;
    return row.map((cell, place) => {
      const left = place > 0 ? row[place - 1] : ring ? row[last] : 0;
      const right = place < last ? row[place + 1] : ring ? row[0] : 0;
      return (rule.value >> (4 * left + 2 * cell + right)) & 1;
    });
  };

  const firstRow = () => {
    const row = new Uint8Array(width.value);
    if (start.value === "cell") row[row.length >> 1] = 1;
    else row.forEach((_, place) => (row[place] = random(Number(seed.value), place) & 1));
    return row;
  };

  // A bit mixer (that of MurmurHash3): the same seed is the same row everywhere.
  const random = (seed, place) => {
    let bits = Math.imul(seed + 1, 0x9e3779b9) ^ place;
    bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
    bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
    return (bits ^ (bits >>> 16)) >>> 7;
  };

  // --- drawing -----------------------------------------------------------------------------------------------------

  const draw = (row, place) => {
    const line = context.createImageData(row.length, 1);
    row.forEach((cell, x) => line.data.set(cell ? [0, 0, 0, 255] : [255, 255, 255, 255], 4 * x));
    context.putImageData(line, 0, place);
  };

  const drawDue = (now) => {
    begun ??= now;
    const perSecond = Number(speed.value);
    const due = perSecond ? Math.min(rows.length, 1 + Math.floor(((now - begun) * perSecond) / 1000)) : rows.length;
    while (drawn < due) draw(rows[drawn], drawn++);
    if (drawn < rows.length) frame = requestAnimationFrame(drawDue);
    pause.disabled = drawn === rows.length;
  };

  const restart = () => {
    if (!form.checkValidity()) return;
    cancelAnimationFrame(frame);
    rows = [firstRow()];
    while (rows.length < Math.ceil(0.6 * width.value)) rows.push(next(rows.at(-1)));
    [canvas.width, canvas.height, drawn, begun] = [rows[0].length, rows.length, 0, undefined];
    pause.textContent = "Pause";
    slider.value = rule.value;
    seed.disabled = start.value === "cell";
    showPatterns();
    canvas.setAttribute("aria-label", (told.value = inWords()));
    frame = requestAnimationFrame(drawDue);
  };

  const goOnOrPause = () => {
    const paused = pause.textContent === "Pause";
    pause.textContent = paused ? "Go on" : "Pause";
    cancelAnimationFrame(frame);
    if (paused) return;
    begun = performance.now() - (1000 * drawn) / Number(speed.value);
    frame = requestAnimationFrame(drawDue);
  };

  // --- the rule ----------------------------------------------------------------------------------------------------

  const bit = (number, place) => (number >> place) & 1;
  const mirror = [0, 4, 2, 6, 1, 5, 3, 7];  // the patterns with left and right exchanged
  const gather = (place) => [...Array(8).keys()].reduce((sum, k) => sum | (place(k) << k), 0);
  const mirrored = (number) => gather((k) => bit(number, mirror[k]));
  const complement = (number) => gather((k) => 1 - bit(number, 7 - k));

  // What a picture says to those who see it, for those who hear it: who the rule is, and what its rows come to.
  const inWords = () => {
    const number = Number(rule.value), other = complement(number);
    const same = [...new Set([mirrored(number), other, mirrored(other)])].filter((one) => one !== number);
    const black = rows.reduce((sum, row) => sum + row.reduce((a, b) => a + b, 0), 0) / (rows.length * rows[0].length);
    const texts = rows.map((row) => row.join(""));
    const again = texts.findIndex((text, place) => texts.indexOf(text) < place);
    const period = again - texts.indexOf(texts[again]);
    return [
      `Rule ${number}, class ${classes[WOLFRAM_CLASSES[number]]}.`,
      same.length ? `The same rule, mirrored or with 0 and 1 exchanged: ${same.sort((a, b) => a - b).join(", ")}.` : "",
      `${rows.length} rows of ${rows[0].length} cells; ${Math.round(100 * black)} % of the cells are 1;`,
      again < 0 ? "no row comes twice." : `from row ${again - period} on they repeat every ${period}.`,
    ].filter(Boolean).join(" ");
  };

  const showPatterns = () => {
    [...form.querySelectorAll(".patterns button")].forEach((button, place) => {
      const after = bit(rule.value, 7 - place);
      button.setAttribute("aria-label", `${button.dataset.pattern.split("").join(" ")} becomes ${after}`);
      button.setAttribute("aria-pressed", Boolean(after));
    });
  };

  for (let code = 7; code >= 0; code--) {
    const pattern = code.toString(2).padStart(3, "0");
    const cells = [...pattern].map((cell) => `<i class="c${cell}"></i>`).join("");
    const button = Object.assign(document.createElement("button"), { type: "button", innerHTML: `${cells}<b></b>` });
    button.dataset.pattern = pattern;
    button.addEventListener("click", () => {
      rule.value ^= 1 << code;
      remember();
    });
    form.querySelector(".patterns").append(button);
  }

  // --- settings and the address ------------------------------------------------------------------------------------

  const remember = () => {
    const said = Object.entries(settings).map(([name, field]) => [name, field.value]);
    history.replaceState(null, "", `#${new URLSearchParams(said)}`);
    restart();
  };

  const recall = () => {
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
      if (name in settings) settings[name].value = value;
    }
    restart();
  };

  if (matchMedia("(prefers-reduced-motion: reduce)").matches) speed.value = "0";
  slider.addEventListener("input", () => (rule.value = slider.value));
  form.addEventListener("input", remember);
  form.addEventListener("submit", (event) => event.preventDefault());
  pause.addEventListener("click", goOnOrPause);
  addEventListener("hashchange", recall);
  form.hidden = false;
  recall();
}
