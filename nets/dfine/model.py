"""D-FINE: a detector whose queries become boxes one by one, so that nothing has to be suppressed.

Source: Peng et al. 2024, "D-FINE: Redefine Regression Task in DETRs as Fine-grained Distribution Refinement". Names of
modules are those of the public weights.
"""

from torch import nn

from nets.backbones.hgnetv2 import HGNetV2
from nets.base import Decoded, DetectorBase
from nets.boxes import centre_size_to_xyxy
from nets.dfine.decoder import DFINEDecoder
from nets.dfine.encoder import HybridEncoder

PIXEL_RULE = {"channels": "RGB", "mean": [0.0, 0.0, 0.0], "std": [255.0, 255.0, 255.0]}
QUERIES = 300
DECODE_RULE = {"transposed_positions": False, "activation": "relu"}
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


class DFINE(DetectorBase):
    """The network; its sizes stand in the table of nets/__init__.py.

    trunk: a key of HGNetV2's sizes. levels: maps that are used. channels, hidden: of the encoder. inner, depth: see
    ELANBlock. layers: of the decoder. decoder_channels, decoder_hidden: as of the encoder. is_norm_frozen: as the
    authors train the larger ones. decode_rule: transposed_positions, see HybridEncoder, and activation of the decoder,
    "relu" or, for weights of DEIM, "silu".
    """

    has_nms, takes_backbone = False, False
    decode_defaults = DECODE_RULE
    head_prefixes = ("decoder.",)

    def __init__(
        self,
        num_classes,
        trunk,
        levels=3,
        channels=256,
        hidden=1024,
        inner=128,
        depth=3,
        layers=6,
        decoder_channels=256,
        decoder_hidden=1024,
        points=(3, 6, 3),
        reg_scale=4,
        is_norm_frozen=False,
        pixel_rule=None,
        decode_rule=None,
    ):
        super().__init__(num_classes, pixel_rule or PIXEL_RULE)
        self.decode_rule = decode_rule or DECODE_RULE
        check_decode_rule(self.decode_rule)
        self.resize_rule = {"mode": "stretch", "pad": 0}
        self.strides = (8, 16, 32)[-levels:]
        # The authors' larger networks have neither the Affine behind ReLU nor a BatchNorm that learns.
        self.backbone = HGNetV2(trunk, levels, not is_norm_frozen, is_norm_frozen)
        is_transposed = self.decode_rule["transposed_positions"]
        self.encoder = HybridEncoder(self.backbone.channels, channels, hidden, inner, depth, is_transposed)
        sizes = decoder_channels, decoder_hidden, points, layers
        act = ACTIVATIONS[self.decode_rule["activation"]]
        self.decoder = DFINEDecoder(num_classes, channels, *sizes, QUERIES, reg_scale, act)

    def adapt_to(self, state):
        """BatchNorm of the backbone learns where it learned in the file, and without one: then it has nothing to keep,
        and without statistics the maps would fade to zero."""
        prefix = self.extractor_prefix()
        if not state or any(key.startswith(prefix) and key.endswith("num_batches_tracked") for key in state):
            self.backbone.learn_norms()

    def remarks(self, input_shape):
        height, width = input_shape
        tokens = sum((height // stride) * (width // stride) for stride in self.strides)
        if tokens >= QUERIES:
            return ()
        return (f"An input of {height}x{width} has {tokens} places, so the network finds {tokens} objects at most.",)

    @property
    def feature_extractor(self):
        return self.backbone

    def class_rows(self):
        """Parameters with a row for each class: {name: (1, rows before those of the classes, rows behind them)}."""
        heads = ("decoder.enc_score_head.", "decoder.dec_score_head.")
        rows = {name: (1, 0, 0) for name, _ in self.named_parameters() if name.startswith(heads)}
        return rows | {"decoder.denoising_class_embed.weight": (1, 0, 1)}

    def predict(self, features, *denoising):
        """DFINERaw of the backbone's maps. denoising: queries of a training step, see DFINEDecoder."""
        return self.decoder(self.encoder(features), *denoising)

    def decode(self, raw):
        """The boxes and classes of all queries, by the last layer."""
        boxes_xyxy = centre_size_to_xyxy(raw.boxes[:, -1].float()) * raw.size[:, None]
        return Decoded(boxes_xyxy, raw.logits[:, -1].float())


def check_decode_rule(rule):
    """Raise ValueError for what is no decode_rule of this network: it may come from a file."""
    if type(rule["transposed_positions"]) is not bool or rule["activation"] not in ACTIVATIONS:
        raise ValueError(
            f"decode_rule is {rule}; expected transposed_positions True or False, and activation relu or silu."
        )
