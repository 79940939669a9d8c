// What a reader can see of the page: contrast of its words, and what lies outside the window.
({
  // Words whose contrast with what lies behind them is under `least`, as [ratio, words, element].
  faint(least) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    const paint = canvas.getContext("2d", { willReadFrequently: true });
    const over = (colour) => { paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1); };
    const luminance = () => {
      const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].map((value) => {
        const share = value / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ancestors = (element) => element ? [...ancestors(element.parentElement), element] : [];
    const found = [];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const element = walk.currentNode.parentElement;
      const words = walk.currentNode.textContent.trim();
      if (!words || element.closest("script, style, title, noscript")) continue;
      if (!element.checkVisibility() || !element.getClientRects().length) continue;
      over("white");
      for (const each of ancestors(element)) over(getComputedStyle(each).backgroundColor);
      const behind = luminance();
      const style = getComputedStyle(element);
      for (const each of ancestors(element)) paint.globalAlpha *= getComputedStyle(each).opacity;
      over(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
      paint.globalAlpha = 1;
      const [dark, light] = [behind, luminance()].sort((a, b) => a - b);
      const ratio = (light + 0.05) / (dark + 0.05);
      if (ratio < least) found.push([ratio.toFixed(2), words.slice(0, 40), element.outerHTML.slice(0, 80)]);
    }
    return found;
  },
  // Elements that end right of the window and lie in nothing that scrolls.
  outside() {
    const scrolls = (element) => element && (
      ["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(element).overflowX)
      || scrolls(element.parentElement));
    return [...document.body.querySelectorAll("*")]
      .filter((e) => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1)
      .filter((e) => !scrolls(e.parentElement))
      .map((e) => e.outerHTML.slice(0, 120));
  },
})
