// Score histograms with a threshold to drag, and the choice of an ensemble's pictures. No library.
"use strict";
(() => {
  const { sets } = JSON.parse(document.getElementById("data").textContent);
  const BINS = 40, HEIGHT = 256, MIDDLE = 116, REACH = 86, MARGIN = 14;
  document.documentElement.classList.add("scripted");

  const svg = (name, attributes = {}, text = "") => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text) node.textContent = text;
    return node;
  };
  const sorted = (values) => [...values].sort((a, b) => a - b);
  const quantile = (values, at) => sorted(values)[Math.min(values.length - 1, Math.floor(at * values.length))];
  const short = (value) => {
    const size = Math.abs(value);
    const text = size >= 1e6 || (size > 0 && size < 1e-3) ? value.toExponential(1) : size >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
    return text.replace("-", "\u2212");
  };
  const rate = (count, total) => (total ? `${(100 * count / total).toFixed(1)} %` : "there is none on this set");

  // Straight around the good parts, compressed beyond: far defects would otherwise squeeze all else into one bin.
  const axis = (scores, good, threshold) => {
    const base = good.length ? good : scores;
    const centre = quantile(base, 0.5);
    const all = [...scores, threshold];
    // Spread over arguments, some hundred thousand scores are more than a call takes.
    const least = all.reduce((a, b) => Math.min(a, b)), most = all.reduce((a, b) => Math.max(a, b));
    const width = most - least || 1;
    const unit = (quantile(base, 0.75) - quantile(base, 0.25)) || width / 10;
    const bend = (score) => Math.asinh((score - centre) / unit);
    const low = bend(least), high = bend(most);
    const pad = 0.04 * (high - low) || 0.5;
    const from = low - pad, span = high - low + 2 * pad;
    return {
      at: (score) => (bend(score) - from) / span,
      score: (at) => centre + unit * Math.sinh(from + at * span),
    };
  };

  const ticks = (scale, width) => {
    const [low, high] = [scale.score(0), scale.score(1)];
    const wanted = [0];
    const top = Math.floor(Math.log10(Math.max(Math.abs(low), Math.abs(high), 1e-9)));
    for (let power = top; power > top - 6; power--)
      for (const digit of [1, 5, 2]) wanted.push(digit * 10 ** power, -digit * 10 ** power);
    const placed = [];
    for (const value of wanted) {
      const x = scale.at(value) * width;
      if (value >= low && value <= high && x > 12 && x < width - 12 && placed.every((other) => Math.abs(other.x - x) > 52))
        placed.push({ x, value });
    }
    return placed;
  };

  function scores(root) {
    const set = sets[Number(root.dataset.set)];
    const [ensembles, parts] = [root.querySelector(".ensemble"), root.querySelector(".part")];
    const plot = root.querySelector(".plot");
    const out = (name, text) => { root.querySelector(`[data-out="${name}"]`).textContent = text; };
    let ensemble, part, scale, start, threshold, width, moved;

    set.ensembles.forEach((one, index) => ensembles.add(new Option(one.name, index)));

    const split = (values) => [0, 1].map((label) => values.filter((_, index) => ensemble.labels[index] === label));

    // A part has no threshold of its own: it starts where it alarms on as many good parts as the whole does.
    const begin = () => {
      if (part === ensemble.parts[0]) return ensemble.threshold;
      const alarms = split(ensemble.parts[0].scores)[0].filter((score) => score >= ensemble.threshold).length;
      const good = sorted(split(part.scores)[0]).reverse();
      if (!good.length) return quantile(part.scores, 0.5);
      if (!alarms) return good[0] + 1e-6 * Math.max(1, Math.abs(good[0]));
      return alarms < good.length ? (good[alarms - 1] + good[alarms]) / 2 : good[alarms - 1];
    };

    function chooseEnsemble() {
      ensemble = set.ensembles[ensembles.value];
      parts.replaceChildren();
      const groups = {};
      ensemble.parts.forEach((one, index) => {
        let into = parts;
        if (one.kind) {
          into = groups[one.kind] ??= Object.assign(document.createElement("optgroup"), { label: one.kind });
          if (!into.parentNode) parts.append(into);
        }
        into.append(new Option(one.label, index));
      });
      choosePart();
    }

    function choosePart() {
      part = ensemble.parts[parts.value];
      threshold = start = begin();
      scale = axis(part.scores, split(part.scores)[0], threshold);
      const promised = (100 * ensemble.promised).toFixed(1);
      out("origin", part === ensemble.parts[0]
        ? `Starts at the calibrated threshold, which promises at most ${promised} % false alarms. High scores are drawn closer together.`
        : "This part has no threshold of its own. Starts where it alarms on as many good parts as the whole ensemble.");
      draw();
    }

    function draw() {
      width = Math.max(240, plot.clientWidth);
      const x = (score) => MARGIN + scale.at(score) * (width - 2 * MARGIN);
      const picture = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT });
      const clips = ["left", "right"].map((side) => {
        const clip = svg("clipPath", { id: `clip-${side}-${root.dataset.set}` });
        clip.append(svg("rect", { y: 0, height: HEIGHT }));
        picture.append(clip);
        return clip.firstChild;
      });
      const counts = split(part.scores).map((values) => {
        const bins = new Array(BINS).fill(0);
        for (const value of values) bins[Math.max(0, Math.min(BINS - 1, Math.floor(scale.at(value) * BINS)))]++;
        return bins;
      });
      // Heights are shares of each class, so that few good parts weigh as much as many defective ones.
      const shares = counts.map((bins) => bins.map((count) => count / Math.max(1, bins.reduce((sum, one) => sum + one, 0))));
      const tallest = Math.max(...shares.flat(), 1e-9);
      const step = (width - 2 * MARGIN) / BINS;
      shares.forEach((bins, label) => {
        const name = label ? "defective" : "good";
        const path = bins.map((share, bin) => {
          if (!share) return "";
          const high = REACH * share / tallest;
          return `M${MARGIN + bin * step + 0.75} ${MIDDLE}v${label ? high : -high}h${step - 1.5}v${label ? -high : high}z`;
        }).join("");
        picture.append(svg("path", { d: path, class: `${name} pale` }));
        const wrong = `url(#clip-${label ? "left" : "right"}-${root.dataset.set})`;
        picture.append(svg("path", { d: path, class: name, "clip-path": wrong }));
      });
      picture.append(svg("path", { d: `M${MARGIN} ${MIDDLE}H${width - MARGIN}`, class: "axis" }));
      for (const tick of ticks(scale, width - 2 * MARGIN))
        picture.append(svg("text", { x: MARGIN + tick.x, y: HEIGHT - 30, "text-anchor": "middle" }, short(tick.value)));
      picture.append(svg("text", { x: MARGIN, y: HEIGHT - 8 }, "score"));
      const handle = svg("g", { class: "handle", role: "slider", tabindex: 0, "aria-label": "Threshold", "aria-orientation": "horizontal" });
      handle.append(
        svg("rect", { class: "hit", x: -22, y: 0, width: 44, height: HEIGHT - 48 }),
        svg("line", { y1: 24, y2: HEIGHT - 48 }),
        svg("circle", { cy: 14, r: 12 }),
        svg("path", { d: "M-3 10l-4 4l4 4M3 10l4 4l-4 4" }),
      );
      picture.append(handle);
      plot.replaceChildren(picture);

      moved = () => {
        const at = x(threshold);
        handle.setAttribute("transform", `translate(${at.toFixed(1)} 0)`);
        clips[0].setAttribute("width", Math.max(0, at));
        clips[1].setAttribute("x", at);
        clips[1].setAttribute("width", Math.max(0, width - at));
        const text = count();
        handle.setAttribute("aria-valuemin", scale.score(0));
        handle.setAttribute("aria-valuemax", scale.score(1));
        handle.setAttribute("aria-valuenow", threshold);
        handle.setAttribute("aria-valuetext", text);
      };
      const move = (at) => { threshold = scale.score(Math.max(0, Math.min(1, at))); moved(); };
      const drag = (event) => {
        const box = picture.getBoundingClientRect();
        move(((event.clientX - box.left) * (width / box.width) - MARGIN) / (width - 2 * MARGIN));
      };
      picture.addEventListener("pointerdown", (event) => {
        if (event.button) return;
        picture.setPointerCapture(event.pointerId);
        handle.focus({ preventScroll: true });
        if (!event.target.closest(".handle")) drag(event);
        event.preventDefault();
      });
      picture.addEventListener("pointermove", (event) => { if (picture.hasPointerCapture(event.pointerId)) drag(event); });
      handle.addEventListener("keydown", (event) => {
        const at = scale.at(threshold), fine = 0.005, coarse = 0.05;
        const keys = { ArrowLeft: at - fine, ArrowDown: at - fine, ArrowRight: at + fine, ArrowUp: at + fine,
          PageDown: at - coarse, PageUp: at + coarse, Home: 0, End: 1 };
        if (!(event.key in keys)) return;
        event.preventDefault();
        move(keys[event.key]);
      });
      moved();
    }

    function count() {
      const [good, defective] = split(part.scores);
      const alarms = good.filter((score) => score >= threshold).length;
      const misses = defective.filter((score) => score < threshold).length;
      out("alarms", `${alarms} of ${good.length}`);
      out("misses", `${misses} of ${defective.length}`);
      out("alarm-rate", rate(alarms, good.length));
      out("miss-rate", rate(misses, defective.length));
      out("threshold", short(threshold));
      const kinds = Object.create(null); // a defect may be called constructor
      part.scores.forEach((score, index) => {
        if (!ensemble.labels[index]) return;
        const kind = kinds[ensemble.defects[index]] ??= { missed: 0, all: 0 };
        kind.all++;
        kind.missed += score < threshold;
      });
      const names = Object.keys(kinds).sort();
      root.querySelector('[data-out="kinds"]').replaceChildren(...names.map((name) => {
        const chip = document.createElement("span");
        chip.textContent = `${name}: ${kinds[name].missed} of ${kinds[name].all} missed`;
        chip.classList.toggle("some", kinds[name].missed > 0);
        return chip;
      }));
      return `${short(threshold)}: ${alarms} of ${good.length} good parts raise a false alarm, ${misses} of ${defective.length} defective parts are missed`;
    }

    ensembles.addEventListener("change", chooseEnsemble);
    parts.addEventListener("change", choosePart);
    root.querySelector(".reset").addEventListener("click", () => { threshold = start; moved(); });
    new ResizeObserver(() => { if (plot.clientWidth && Math.max(240, plot.clientWidth) !== width) draw(); }).observe(plot);
    chooseEnsemble();
  }

  function pictures(choice) {
    const all = choice.closest(".galleries").querySelectorAll(".of");
    const show = () => all.forEach((one) => { one.hidden = one.dataset.ensemble !== choice.value; });
    choice.addEventListener("change", show);
    show();
  }

  document.querySelectorAll(".scores").forEach(scores);
  document.querySelectorAll("select.shown").forEach(pictures);
})();
