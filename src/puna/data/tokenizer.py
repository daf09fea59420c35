"""The tokenizer that is trained with and shipped: the base's files with the fewest edits that make it a chat model's.

Chat tokens never resize the vocabulary: they take ids that the base keeps in reserve. And what the chat template
renders is everything: the template writes the beginning-of-text token, the tokenizer adds none. So
`encode(render(messages))`, which servers do for a plain prompt, and `apply_chat_template(tokenize=True)`, which they do
for a chat, give the very ids that were trained on; with the token in both places the first would have two, and with it
in the tokenizer alone the second would have none.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.artifacts import file_digest, tree_digest
from puna.data.template import BUILT_IN, ChatTemplate, load_template
from puna.errors import DataError

CHATML = ("<|im_start|>", "<|im_end|>")
CONTROL_TOKEN = re.compile(r"<\|[\w.:-]+\|>")
# Rows that pre-training never touched: Llama 3, Mistral from v0.3, Gemma, Qwen, NeMo.
RESERVED = re.compile(
    r"<\|reserved_special_token_\d+\|>|\[control_\d+\]|<unused\d+>|<\|extra_\d+\|>|<SPECIAL_\d+>|<\|reserved_\d+\|>"
)
PAD_NAMES = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]")
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json")


@dataclass(frozen=True)
class ChatTokenizer:
    """The files of `tokenizer/`, and the ids that other stages ask for."""

    files: Mapping[str, str]
    """File name -> its text."""
    template: ChatTemplate
    """Bound to this tokenizer's special tokens."""
    eos_token_id: int
    """The token that ends a reply."""
    end_of_text: str
    """The token that ends a document: the base's own."""
    bos_token_id: int | None
    pad_token_id: int | None
    stop_token_ids: tuple[int, ...]
    chat_token_ids: Mapping[str, int]
    """Tokens that took a reserved id: their rows in the base are empty and have to be trained."""

    def write(self, folder: Path) -> None:
        """Write the files into `folder`, made if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")


def build_tokenizer(base_dir: Path, template: str, *, plain_text: bool = False) -> ChatTokenizer:
    """The base's tokenizer with a chat template, its tokens, and an end token that the template uses.

    With `plain_text`, for datasets without turns, the tokenizer goes on adding the beginning-of-text token to any
    prompt as the base's does, and a built-in template does not write it.

    Raises:
        DataError: no tokenizer.json, no ids in reserve for the template's tokens, a template without an end token.
    """
    chat = load_template(template)
    files = _BaseFiles.read(base_dir)
    taken = files.claim(chat)
    ids = files.ids
    special = {name: token for name in SPECIAL if (token := files.special(name)) in ids}
    chat = dataclasses.replace(chat, special_tokens=special)
    end = next((t for t in sorted(ids, key=len, reverse=True) if chat.reply_end.startswith(t)), None)
    if end is None:
        raise DataError(
            f"chat template {chat.name} ends no reply with a token of {base_dir}, so the model would never stop",
            "write {{ eos_token }} after what the assistant says",
        )
    base_eos = special.get("eos_token", end)
    special = special | {"eos_token": end}
    if pad := files.padding(special, base_eos):
        special["pad_token"] = pad
    bos = special.get("bos_token")
    if plain_text and template in BUILT_IN:
        chat = dataclasses.replace(chat, training=_without_bos(chat.training), inference=_without_bos(chat.inference))
    chat = dataclasses.replace(chat, special_tokens=special)
    keeps_bos = plain_text and not (bos and chat.render([{"role": "user", "content": "?"}]).startswith(bos))
    return ChatTokenizer(
        files=files.edited(special, chat.inference, adds_bos=keeps_bos),
        template=chat,
        eos_token_id=ids[end],
        end_of_text=base_eos,
        bos_token_id=ids[bos] if bos else None,
        pad_token_id=ids[pad] if pad else None,
        stop_token_ids=tuple(dict.fromkeys((ids[end], ids[base_eos]))),
        chat_token_ids=taken,
    )


def base_digest(base_dir: Path) -> str:
    """A digest of the base's tokenizer files, weights and all else left out."""
    return tree_digest({name: file_digest(base_dir / name) for name in FILES if (base_dir / name).is_file()})


def _without_bos(source: str) -> str:
    return source.replace("{{- bos_token }}\n", "", 1)


@dataclass
class _BaseFiles:
    """The base's JSON files in memory, being edited."""

    folder: Path
    tokenizer: dict[str, Any]
    config: dict[str, Any]
    special_map: dict[str, Any]
    model: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> _BaseFiles:
        if not (folder / "tokenizer.json").is_file():
            raise DataError(
                f"{folder} has no tokenizer.json",
                "save it once with AutoTokenizer.from_pretrained(...).save_pretrained(...), or choose another `base`",
            )
        return cls(folder, *(_read_json(folder / name) for name in FILES))

    @property
    def added(self) -> list[dict[str, Any]]:
        return self.tokenizer.setdefault("added_tokens", [])  # type: ignore[no-any-return]

    @property
    def ids(self) -> dict[str, int]:
        """Added tokens (special tokens among them) and their ids."""
        return {token["content"]: token["id"] for token in self.added}

    def special(self, name: str) -> str | None:
        """`bos_token` and the like, wherever the base says it."""
        for source in (self.config, self.special_map):
            value = source.get(name)
            if token := value.get("content") if isinstance(value, dict) else value:
                return str(token)
        token_id = self.model.get(f"{name}_id")
        token_id = token_id[0] if isinstance(token_id, list) else token_id
        return next((token for token, i in self.ids.items() if i == token_id), None)

    def claim(self, chat: ChatTemplate) -> dict[str, int]:
        """Give ChatML's tokens, where the template needs them and the base lacks them, ids that the base reserves."""
        missing = [token for token in dict.fromkeys(CONTROL_TOKEN.findall(chat.inference)) if token not in self.ids]
        for token in missing:
            if token not in CHATML:
                raise DataError(
                    f"chat template {chat.name} writes {token}, which the tokenizer of {self.folder} does not know",
                    "set `data.template: chatml`, or to a Jinja file that fits this base",
                )
        spare = [token for token in self.ids if RESERVED.fullmatch(token)]
        if len(spare) < len(missing):
            raise DataError(
                f"the tokenizer of {self.folder} has no reserved ids for {' and '.join(missing)}",
                "set `data.template` to llama3 or to a Jinja file written for this base, or choose a `base` with "
                "reserved ids (Llama 3 has 250)",
            )
        for new, old in zip(missing, spare, strict=False):
            self._rename(old, new)
        return {token: self.ids[token] for token in missing}

    def padding(self, special: Mapping[str, str], base_eos: str) -> str | None:
        """A token to pad with that never ends a reply: trainers that mask padding would unlearn to stop."""
        own, ids = special.get("pad_token"), self.ids
        if own and own not in (special["eos_token"], base_eos):
            return own
        spare = [token for token in ids if RESERVED.fullmatch(token)]
        candidates = [*(n for n in PAD_NAMES if n in ids), *spare, special.get("unk_token"), special.get("bos_token")]
        return next((token for token in candidates if token and token != special["eos_token"]), None)

    def edited(self, special: Mapping[str, str], template: str, *, adds_bos: bool) -> dict[str, str]:
        """The files to ship: file name -> text."""
        if not adds_bos:
            self.tokenizer["post_processor"] = _adding_nothing(self.tokenizer.get("post_processor"))
        config = {k: v for k, v in self.config.items() if k not in WRITTEN_BY_NEWER}
        # Names that every release since transformers 4.0, vLLM and others load; newer ones write others.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config["chat_template"] = template
        # token_type_ids, the class's default, would be refused by a Llama's forward().
        config.setdefault("model_input_names", ["input_ids", "attention_mask"])
        if isinstance(extra := config.pop("extra_special_tokens", None), list):  # transformers 4 wants an object here
            config.setdefault("additional_special_tokens", extra)
        elif extra:
            config["extra_special_tokens"] = extra
        for key in ("add_bos_token", "add_eos_token"):
            if not adds_bos or key in config:
                config[key] = adds_bos and bool(config.get(key))
        config |= special
        return {
            "tokenizer.json": _dump(self.tokenizer),
            "tokenizer_config.json": _dump(config),
            "special_tokens_map.json": _dump(dict(special)),
            "chat_template.jinja": template,
        }

    def _rename(self, old: str, new: str) -> None:
        for token in self.added:
            if token["content"] == old:
                token["content"] = new
        vocab = self.tokenizer.get("model", {}).get("vocab")
        if isinstance(vocab, dict) and old in vocab:
            self.tokenizer["model"]["vocab"] = {new if k == old else k: v for k, v in vocab.items()}
        self.tokenizer["post_processor"] = _renamed(self.tokenizer.get("post_processor"), old, new)
        self.config, self.special_map = _renamed(self.config, old, new), _renamed(self.special_map, old, new)


# transformers 5 writes these about itself; older releases take them for arguments of the tokenizer.
WRITTEN_BY_NEWER = ("backend", "is_local", "local_files_only", "tokenizer_file", "name_or_path")


def _adding_nothing(processor: Any) -> Any:
    """A post-processor without the steps that add tokens; others (byte offsets) stay."""
    if processor is None or processor["type"] in ("TemplateProcessing", "BertProcessing", "RobertaProcessing"):
        return None
    if processor["type"] == "Sequence":
        kept = [kept for step in processor["processors"] if (kept := _adding_nothing(step)) is not None]
        return {**processor, "processors": kept} if kept else None
    return processor


def _renamed(value: Any, old: str, new: str) -> Any:
    """`value` with every text that equals `old`, keys too, replaced."""
    if isinstance(value, dict):
        return {new if k == old else k: _renamed(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [_renamed(item, old, new) for item in value]
    return new if value == old else value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as problem:
        raise DataError(f"{path} is not JSON: {problem}", "fetch the base again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold an object", "fetch the base again")
    return value


def _dump(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
