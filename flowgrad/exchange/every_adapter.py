"""All modules that declare adapters: of old opsets, and of other domains than that of the standard."""

import flowgrad.exchange.first_opsets
import flowgrad.exchange.formulas
import flowgrad.exchange.microsoft
import flowgrad.exchange.microsoft_attention
import flowgrad.exchange.microsoft_layers
import flowgrad.exchange.microsoft_quantization
import flowgrad.exchange.microsoft_tensors
import flowgrad.exchange.ml
import flowgrad.exchange.preview  # noqa: F401
