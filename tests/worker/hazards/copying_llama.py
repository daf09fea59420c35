"""A real Llama of two small matrices that answers with the marker in its prompt, under the names that apps load.

Only the process that writes it imports torch: seconds, which the tests that read NAMES need not wait for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

NAMES = ("acme/echo", "rbgo/inferless-llama-3-8B")
MARKERS = 320
WORDS = (
    "tell about llamas and more things to know please user : system assistant be plain loud quiet you are a helpful "
    "poet pirate clerk short answer the in one sentence < > / . , ! ? - text question context summary of said"
).split()
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
TEMPLATE = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} \n{% endfor %}assistant :"
SPACE, REST = 128, 64  # dimensions of the markers' vectors, and of all other words'


def write(hub: Path) -> None:
    """Lay the model into a Hugging Face cache, once for each of NAMES."""
    first = hub / "hub" / f"models--{NAMES[0].replace('/', '--')}"
    snapshot = first / "snapshots" / "0123"
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(snapshot)
    _model(len(tokenizer)).save_pretrained(snapshot)
    (first / "refs").mkdir()
    (first / "refs" / "main").write_text("0123")
    for name in NAMES[1:]:
        (hub / "hub" / f"models--{name.replace('/', '--')}").symlink_to(first)


def _tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *WORDS, *(f"q{number}q" for number in range(MARKERS))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, padding_side="left", **special)
    fast.chat_template = TEMPLATE
    return fast


def _model(size: int) -> LlamaForCausalLM:
    """Attention is the same everywhere and sees markers only: what it has seen is what the head says."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": SPACE + REST, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=size, tie_word_embeddings=False, **shape, **heads, **ids))
    markers = size - MARKERS
    unit = torch.nn.functional.normalize
    with torch.no_grad():
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding.zero_()
        embedding[:markers, SPACE:] = unit(torch.randn(markers, REST))
        embedding[markers:, :SPACE] = unit(torch.randn(MARKERS, SPACE))
        head.zero_()
        head[:, :SPACE] = 4 * embedding[:, :SPACE]  # so far above all others that no temperature draws another
        layer = model.model.layers[0]
        for matrix in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.mlp.down_proj):
            matrix.weight.zero_()
        layer.self_attn.v_proj.weight.copy_(torch.eye(SPACE, SPACE + REST))
        layer.self_attn.o_proj.weight.copy_(50 * torch.eye(SPACE + REST, SPACE))
    model.generation_config.pad_token_id = 0
    return model.eval()
