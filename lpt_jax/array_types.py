"""Every dimension letter and array name of the library, once.

B users (or texts) in a batch, G profiles per user, P prompt tokens, T profile tokens, N items,
S texts in a row of the encoder, M targets per session, H hidden history items, D width, V vocabulary, L layers.
"""

from jaxtyping import Array, Bool, Float, Int

Prompts = Int[Array, "B P"]  # prompt token ids, left-padded
PromptMask = Bool[Array, "B P"]  # True where a prompt token is real
ProfileTokens = Int[Array, "B G T"]  # sampled token ids, padded after the end
ProfileMask = Bool[Array, "B G T"]  # True up to and including the end-of-sequence token
LogProbs = Float[Array, "B G T"]  # natural-log probabilities of profile tokens
Hidden = Float[Array, "..."]  # hidden states, last axis D
Tokens = Int[Array, "B T"]  # text token ids of the encoder
Mask = Bool[Array, "B T"]
Segments = Int[Array, "B T"]  # which of its row's texts a token belongs to: 1, 2, …, S; 0 is padding
Embeddings = Float[Array, "B D"]  # unit length
ItemEmbeddings = Float[Array, "N D"]
Scores = Float[Array, "B N"]
Ranks = Int[Array, "B M"]  # 1 is best; 0 where there is no target
Targets = Int[Array, "B M"]  # catalogue indices, -1 where there is none
HiddenItems = Int[Array, "B H"]  # catalogue indices left out of the ranking, -1 where there is none
Rewards = Float[Array, "B G"]
