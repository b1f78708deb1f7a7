// Values under the pointer. Without it the page loses nothing but this.
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const show = (v) => (v === 0 ? "0" : Math.abs(v) < 1e-3 || Math.abs(v) >= 1e6 ? v.toExponential(2) : String(+v.toPrecision(3)));
  for (const plot of document.querySelectorAll("svg.plot")) {
    const [x0, x1, left, right] = plot.dataset.x.split(" ").map(Number);
    const [y0, y1, bottom, top] = plot.dataset.y.split(" ").map(Number);
    const lines = [...plot.querySelectorAll("g.line")].map((g) => ({
      name: g.dataset.name,
      points: [...g.children].flatMap((c) =>
        c.points ? [...c.points].map((p) => [p.x, p.y]) : [[+c.getAttribute("cx"), +c.getAttribute("cy")]]),
    })).filter((line) => line.points.length);
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const at = (event.clientX - box.left) * (plot.viewBox.baseVal.width / box.width);
      const near = lines.map((line) => [line.name, line.points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a))]);
      tip.replaceChildren();
      if (!near.length || at < left - 8 || at > right + 8) { tip.hidden = true; return; }
      const row = (text) => { const div = document.createElement("div"); div.textContent = text; tip.append(div); };
      row("step " + show(x0 + ((near[0][1][0] - left) / (right - left)) * (x1 - x0)));
      for (const [name, p] of near) row(name + "  " + show(y0 + ((bottom - p[1]) / (bottom - top)) * (y1 - y0)));
      tip.hidden = false;
      tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
      tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8) + "px";
    });
    plot.addEventListener("pointerleave", () => { tip.hidden = true; });
  }
})();
