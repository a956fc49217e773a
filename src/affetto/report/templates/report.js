"use strict";
(() => {
  const say = document.getElementById("said");
  // execCommand first: it needs no permission, and works on pages opened from disk.
  const copy = async (text, button) => {
    const area = Object.assign(document.createElement("textarea"), { value: text });
    button.after(area);
    area.focus();
    area.select();
    let done = document.execCommand("copy");
    area.remove();
    button.focus();
    if (!done && navigator.clipboard) done = await navigator.clipboard.writeText(text).then(() => true, () => false);
    const before = button.dataset.label;
    button.textContent = done ? "Copied" : "Copying was refused";
    say.textContent = button.textContent;
    setTimeout(() => { button.textContent = before; }, 1600);
  };
  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = false;
    button.dataset.label = button.textContent;
    button.addEventListener("click", () => copy(document.getElementById(button.dataset.copy).value, button));
  }

  const players = [...document.querySelectorAll("audio")];
  for (const audio of players) {
    const view = audio.closest(".clip").querySelector(".view");
    const head = view.querySelector(".playhead");
    const { start, width, span } = view.dataset;
    const place = () => {
      head.style.left = `${100 * (Number(start) + Number(width) * audio.currentTime / Number(span))}%`;
      head.hidden = audio.paused && (audio.currentTime === 0 || audio.ended);
    };
    const follow = () => { place(); if (!audio.paused) requestAnimationFrame(follow); };
    audio.addEventListener("play", () => {
      for (const other of players) if (other !== audio) other.pause();
      follow();
    });
    for (const event of ["pause", "seeked", "ended"]) audio.addEventListener(event, place);
    view.addEventListener("click", (event) => {
      const box = view.getBoundingClientRect();
      const share = ((event.clientX - box.left) / box.width - Number(start)) / Number(width);
      audio.currentTime = Math.min(Math.max(share * Number(span), 0), audio.duration || 0);
      audio.play().catch(() => {}); // paused again before it began
    });
  }
})();
