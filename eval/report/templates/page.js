// One player at a time; a line in the picture follows it.
const players = [...document.querySelectorAll("audio")];
for (const player of players) {
  const line = player.closest(".clip").querySelector(".playhead");
  const follow = () => {
    if (line) {
      const { from, width, seconds } = line.dataset;
      const share = Math.min(player.currentTime / Number(seconds), 1);
      line.style.transform = `translateX(${share * Number(width)}px)`;
      line.classList.add("on");
    }
    if (!player.paused) requestAnimationFrame(follow);
  };
  player.addEventListener("play", () => {
    players.forEach((other) => other !== player && other.pause());
    if (player.dataset.side !== "target") follow();
  });
  player.addEventListener("seeking", () => player.dataset.side !== "target" && follow());
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => (d.open = true)));
