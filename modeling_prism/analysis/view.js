"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const make = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const draw = (tag, attributes, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};
const unpack = async (text) => {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
};
const quote = (token) => `“${token.trim() || token.replaceAll("\n", "↵").replaceAll(" ", "␣")}”`;
const percent = (share) => (share >= 0.995 ? "100 %" : `${(100 * share).toPrecision(2)} %`);

async function readText() {
  const { tokens, bits, layers, heads, signal } = data;
  const spans = [...find("tokens").children];
  const triangle = (tokens.length * (tokens.length + 1)) / 2;
  const maps = data.maps ? await unpack(data.maps) : null;
  let setting = data.trained, chosen = [], label = "", back = false, pointed = null, kept = null;

  // Attention of a head, a share of 1, stored as the square root times 255.
  const attention = (head, query, key) => {
    const offset = (setting * layers * heads + head) * triangle;
    return (maps[offset + (query * (query + 1)) / 2 + key] / 255) ** 2;
  };
  const weight = (here, there) => {
    const [query, key] = back ? [there, here] : [here, there];
    if (!maps || key > query) return 0;
    return chosen.reduce((sum, head) => sum + attention(head, query, key), 0) / chosen.length;
  };
  const isNoise = (head) => head % heads >= signal;

  function show() {
    const here = pointed ?? kept;
    const reading = here !== null && maps !== null;
    const weights = tokens.map((_, there) => (reading ? weight(here, there) : 0));
    find("tokens").classList.toggle("reading", reading);
    find("tokens").classList.toggle("subtracting", reading && chosen.every(isNoise));
    spans.forEach((span, there) => {
      span.classList.toggle("here", there === here);
      span.style.setProperty("--w", reading ? Math.sqrt(weights[there]) : Math.min(1, bits[setting][there] / 8));
    });
    const said = find("said");
    said.replaceChildren();
    if (here !== null) {
      const guesses = data.guesses[here].map(([token, share]) => `${quote(token)} ${percent(share)}`).join(", ");
      said.append(make("b", {}, quote(tokens[here])), here ? `: ${bits[setting][here].toFixed(2)} bits` : ": the first token");
      if (guesses) said.append(setting === data.trained ? `; expected ${guesses}. ` : `; as trained, expected ${guesses}. `);
      if (reading) {
        const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, 4).filter((there) => weights[there] > 0.005);
        const seen = order.map((there) => `${quote(tokens[there])} ${percent(weights[there])}`).join(", ");
        said.append(`${label} ${back ? "is read here by" : "looks at"} ${seen || "nothing much"}.`);
      }
    }
    if (data.angles) showAngles(here);
  }

  function showAngles(here) {
    const dials = data.angles.map((row, layer) => {
      const angle = here === null ? row.reduce((a, b) => a + b) / row.length : row[here];
      const [x, y] = [Math.cos((angle * Math.PI) / 180), -Math.sin((angle * Math.PI) / 180)];
      const line = { stroke: "currentColor", "stroke-width": 0.03, fill: "none" };
      const face = draw("svg", { viewBox: "-1.1 -1.1 2.2 1.3", "aria-hidden": true },
        draw("path", { ...line, d: "M1 0A1 1 0 0 0 -1 0Z" }), draw("path", { ...line, d: "M0 0H1" }),
        draw("path", { ...line, d: `M0 0L${x} ${y}`, stroke: "var(--signal)", "stroke-width": 0.09 }),
        draw("path", { ...line, d: `M.5 0A.5 .5 0 0 0 ${x / 2} ${y / 2}`, stroke: "var(--signal)" }));
      return make("div", {}, face, `layer ${layer}: ${Math.round(angle)}°`);
    });
    find("dials").replaceChildren(make("div", { style: "width: 100%" },
      here === null ? "Angle by which each layer turns a token, on average" : `Angle by which each layer turns ${quote(tokens[here])}`), ...dials);
  }

  // One tab stop, and arrow keys within it.
  const lineBelow = (here, way) => {
    const { offsetTop, offsetLeft } = spans[here];
    const others = spans.filter((span) => Math.sign(span.offsetTop - offsetTop) === way);
    const distance = (span) => 1e4 * Math.abs(span.offsetTop - offsetTop) + Math.abs(span.offsetLeft - offsetLeft);
    return others.length ? spans.indexOf(others.reduce((a, b) => (distance(b) < distance(a) ? b : a))) : here;
  };
  find("tokens").addEventListener("keydown", (event) => {
    const last = tokens.length - 1, here = kept ?? pointed ?? -1, from = Math.max(here, 0);
    const goals = { ArrowRight: Math.min(here + 1, last), ArrowLeft: Math.max(here - 1, 0), Home: 0, End: last, Escape: null,
      ArrowDown: () => lineBelow(from, 1), ArrowUp: () => lineBelow(from, -1) };
    if (!(event.key in goals)) return;
    event.preventDefault();
    const goal = goals[event.key];
    [kept, pointed] = [typeof goal === "function" ? goal() : goal, null];
    show();
  });
  const indexOf = (event) => spans.indexOf(event.target);
  find("tokens").addEventListener("pointerover", (event) => { if (indexOf(event) >= 0) { pointed = indexOf(event); show(); } });
  find("tokens").addEventListener("pointerleave", () => { pointed = null; show(); });
  find("tokens").addEventListener("click", (event) => {
    const index = indexOf(event);
    if (index >= 0) kept = kept === index ? null : index;
    show();
  });

  const thumbnails = [];
  function paint() {
    for (const [canvas, head] of thumbnails) {
      const [red, green, blue] = getComputedStyle(canvas).color.match(/\d+/g);
      const image = new ImageData(tokens.length, tokens.length), pixels = new Uint32Array(image.data.buffer);
      const colour = red | (green << 8) | (blue << 16);
      let place = (setting * layers * heads + head) * triangle;
      for (let query = 0; query < tokens.length; query++) {
        for (let key = 0; key <= query; key++) pixels[query * tokens.length + key] = colour | (maps[place++] << 24);
      }
      canvas.getContext("2d").putImageData(image, 0, 0);
    }
  }
  function choose(button, ownLabel, own) {
    for (const other of find("head-map").querySelectorAll(".set")) {
      other.ariaPressed = other === button;
      other.tabIndex = other === button ? 0 : -1;
    }
    [label, chosen] = [ownLabel, own];
    show();
  }
  function makeHeads() {
    const all = Array.from({ length: layers * heads }, (_, head) => head);
    const sets = [["all heads", "The mean of all heads", all]];
    if (signal) {
      sets.push(["signal heads", "The mean of all signal heads", all.filter((head) => !isNoise(head))]);
      sets.push(["noise heads", "The mean of all noise heads", all.filter(isNoise)]);
    }
    for (let layer = 0; layer < layers; layer++) {
      sets.push([`layer ${layer}`, `The mean of layer ${layer}`, all.slice(layer * heads, (layer + 1) * heads)]);
    }
    const chip = (className, label, own, ...inside) => {
      const button = make("button", { className: `set ${className}`, type: "button", ariaLabel: label, title: label, ariaPressed: false }, ...inside);
      button.addEventListener("click", () => choose(button, label, own));
      return button;
    };
    const turn = make("button", { type: "button", ariaPressed: false }, "who looks here?");
    turn.addEventListener("click", () => { back = !back; turn.ariaPressed = back; show(); });
    const groups = [make("h3", {}, "Means, and the way to look"),
      make("div", { className: "chips" }, ...sets.map(([name, label, own]) => chip("", label, own, name)))];
    for (const [kind, own] of data.kinds) {
      groups.push(make("h3", {}, `Heads: ${kind}`), make("div", { className: "chips" }, ...own.map((head) => {
        const [layer, number] = [Math.floor(head / heads), head % heads];
        const canvas = make("canvas", { width: tokens.length, height: tokens.length });
        thumbnails.push([canvas, head]);
        const bank = signal ? (isNoise(head) ? " (noise)" : " (signal)") : "";
        return chip(isNoise(head) ? "head noise" : "head", `Layer ${layer}, head ${number}${bank}`, [head], canvas,
          make("span", {}, `${layer}.${number}`));
      })));
    }
    find("head-map").replaceChildren(...groups);
    groups[1].append(turn);
    groups[1].firstChild.click();
    // Arrow keys go from head to head.
    find("head-map").addEventListener("keydown", (event) => {
      const way = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!way) return;
      event.preventDefault();
      const buttons = [...find("head-map").querySelectorAll(".set")];
      const next = buttons[buttons.indexOf(document.activeElement) + way];
      next?.focus();
      next?.click();
    });
    paint();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  }
  function set(value) {
    setting = value;
    for (const row of find("steering").querySelectorAll("tr")) {
      row.querySelectorAll("td").forEach((cell, index) => cell.classList.toggle("now", index === setting));
    }
    if (maps) paint();
    show();
  }
  if (maps) makeHeads();
  find("setting")?.addEventListener("input", (event) => set(Number(event.target.value)));
  if (find("steering")) set(data.trained);
  show();
}

async function readClock() {
  const { residues, frequencies, circles, product } = data;
  const hands = new Int8Array((await unpack(data.hands)).buffer);
  const [n, K] = [residues.length, frequencies.length];
  const ascending = [...residues.keys()].sort((a, b) => residues[a] - residues[b]);
  const line = (x, y, attributes) => draw("path", { d: `M0 0L${x} ${-y}`, fill: "none", "stroke-linecap": "round", ...attributes });
  const faces = make("div", { className: "faces" }), bars = make("div"), said = make("output", { ariaLive: "polite" });
  const inputs = ["a", "b"].map((name, index) => make("input", { type: "range", min: 0, max: n - 1, value: Math.floor(((index + 1) * n) / 4), ariaLabel: name }));
  const labels = inputs.map((input, index) => { const text = make("span"); return [make("label", {}, text, input), text, "ab"[index]]; });

  function show() {
    const [a, b] = inputs.map((input) => ascending[Number(input.value)]);
    labels.forEach(([, text, name], index) => { text.textContent = `${name} = ${residues[[a, b][index]]}`; });
    const hand = (k) => [hands[2 * ((a * n + b) * K + k)], hands[2 * ((a * n + b) * K + k) + 1]].map((part) => part / 127);
    const right = (a + b) % n;
    faces.replaceChildren(...frequencies.map((frequency, k) => {
      const [x, y] = hand(k), length = Math.hypot(x, y), angle = (2 * Math.PI * frequency * right) / n;
      const thin = { stroke: "var(--muted)", "stroke-width": 0.03 };
      const off = Math.abs(Math.atan2(y * Math.cos(angle) - x * Math.sin(angle), x * Math.cos(angle) + y * Math.sin(angle)) * 180 / Math.PI);
      return make("div", {}, draw("svg", { viewBox: "-1.45 -1.45 2.9 2.9", role: "img", "aria-label": `Clock of frequency ${frequency}: the hand is ${Math.round(off)} degrees from the right answer` },
        draw("circle", { r: 1, fill: "none", stroke: "var(--line)", "stroke-width": 0.02 }),
        ...circles[k].map(([px, py]) => draw("circle", { cx: px, cy: -py, r: 0.035, fill: "var(--ink)", opacity: 0.5 })),
        line(...circles[k][a], thin), line(...circles[k][b], thin),
        draw("circle", { cx: 1.25 * Math.cos(angle), cy: -1.25 * Math.sin(angle), r: 0.07, fill: "var(--noise)" }),
        line(x / (length || 1), y / (length || 1), { stroke: "var(--signal)", "stroke-width": 0.07 })),
      `k = ${frequency}, strength ${length.toFixed(2)}`);
    }));
    const sums = residues.map((_, c) => frequencies.reduce((sum, frequency, k) => {
      const [x, y] = hand(k), angle = (2 * Math.PI * frequency * c) / n;
      return sum + x * Math.cos(angle) + y * Math.sin(angle);
    }, 0));
    const top = Math.max(...sums.map(Math.abs)) || 1, answer = sums.indexOf(Math.max(...sums));
    bars.replaceChildren(draw("svg", { class: "bars", viewBox: `0 -1 ${n} 2`, preserveAspectRatio: "none", role: "img", "aria-label": "Sum of the five waves for every residue" },
      ...ascending.map((c, place) => draw("rect", { x: place + 0.1, width: 0.8, y: -Math.max(sums[c], 0) / top, height: Math.abs(sums[c]) / top,
        fill: c === answer ? "var(--signal)" : c === right ? "var(--noise)" : "var(--muted)", opacity: c === answer || c === right ? 1 : 0.4 }))));
    said.textContent = `${residues[a]} ${product ? "×" : "+"} ${residues[b]} = ${residues[right]}. The ${K} frequencies together answer ${residues[answer]}${answer === right ? "." : ", which is wrong."}`;
  }
  for (const input of inputs) input.addEventListener("input", show);
  find("clock").replaceChildren(make("div", { className: "chips" }, ...labels.map(([element]) => element)), said, faces, bars,
    make("p", { className: "scale" }, `Residues from ${residues[ascending[0]]} to ${residues[ascending[n - 1]]}; the answer of the clocks is the tallest bar.`));
  show();
}

data.tokens ? readText() : readClock();
