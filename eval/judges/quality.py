"""How clean it sounds: DNSMOS."""

from __future__ import annotations

import numpy as np

from vivavoce.eval.judges.base import RATE, Heard, Judge


class QualityJudge(Judge):
    """DNSMOS P.835 (Reddy et al. 2022) by the package speechmos: overall, signal and background, 1 to 5.

    It was made for speech with noise; clips under 9 s are repeated to that length. Read laughs and sobs by
    their difference from the source, not by the number.
    """

    kind = "quality"
    package, install, licence = "speechmos", "speechmos", "MIT"
    columns = ("dnsmos", "dnsmos_signal", "dnsmos_background", "dnsmos_source", "dnsmos_change")
    min_seconds = 0.3

    def __init__(self) -> None:
        self._dnsmos = self.require("speechmos.dnsmos")

    def analyse(self, wave: np.ndarray) -> Heard:
        """[overall, signal, background]."""
        r = self._dnsmos.run(np.clip(wave, -1.0, 1.0), RATE)
        return {"mos": np.array([r["ovrl_mos"], r["sig_mos"], r["bak_mos"]], np.float64)}

    def compare(self, source: Heard, converted: Heard, target: Heard | None = None) -> dict[str, float | str]:
        own, (overall, signal, background) = float(source["mos"][0]), (float(x) for x in converted["mos"])
        return {"dnsmos": overall, "dnsmos_signal": signal, "dnsmos_background": background, "dnsmos_source": own,
                "dnsmos_change": overall - own}  # fmt: skip
