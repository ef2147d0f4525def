"""HuBERT and its kin as unit encoders: HuBERT, ContentVec, wav2vec 2.0 / XLS-R and WavLM.

    waveform -> frozen speech model, cut after a layer, on our frame grid   (encoder; transformers or fairseq2)
             -> projection, nearest of k centroids                          (centroids)
             -> content units; pitch, and expression if wanted, from a native encoder   (model)

None of them streams; `window` hears the last second or so again at every step. The heavy library is imported when
the first sound comes.
"""

from vivavoce.units.hubert.centroids import Centroids
from vivavoce.units.hubert.checkpoint import Checkpoint, import_checkpoint
from vivavoce.units.hubert.encoder import SpeechEncoder
from vivavoce.units.hubert.model import HubertConfig, HubertUnits
from vivavoce.units.hubert.runs import collapse, expand
from vivavoce.units.hubert.window import Sliding

__all__ = [
    "Centroids",
    "Checkpoint",
    "HubertConfig",
    "HubertUnits",
    "Sliding",
    "SpeechEncoder",
    "collapse",
    "expand",
    "import_checkpoint",
]
