"""Which apps may run many calls at once: clean ones are proved, whatever keeps something of a request is named."""

from __future__ import annotations

import importlib
import logging
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from puna import demo
from puna.worker.app import concurrency
from puna.worker.app.runner import App
from puna.worker.engines import engine
from puna.worker.engines.transformers import shims
from puna.worker.engines.vllm import llm as vllm_llm
from worker import fake_vllm

Judge = Callable[..., str]

PROBLEM = """
    import json, random, re, threading, uuid, os, copy, time
    from vllm import LLM, SamplingParams
    from transformers import AutoTokenizer
    {top}

    class InferlessPythonModel:
        def initialize(self):
            self.llm = LLM(model="acme/tiny")
            self.params = SamplingParams(max_tokens=3)
            self.tokenizer = AutoTokenizer.from_pretrained({model!r})
            {initialize}
        {more}
        def infer(self, inputs):
            prompt = inputs["prompt"]
            {infer}
            result = self.llm.generate(prompt, self.params)
            return {{"text": result[0].outputs[0].text}}
"""


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    """`judge(infer=..., top=..., initialize=..., more=...)` -> why not, over an engine that is no file of the app."""
    before = set(sys.modules)
    fake_vllm.write(tmp_path / "library")
    for name in ("vllm", "vllm.entrypoints", "vllm.entrypoints.llm", "vllm.engine", "vllm.sampling_params"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "library"))
    monkeypatch.syspath_prepend(str(tmp_path / "app"))
    monkeypatch.setattr(engine, "_engines", [])
    vllm_llm.shim(importlib.import_module("vllm.entrypoints.llm"))
    shims.shim_tokenizers(importlib.import_module("transformers.tokenization_utils_tokenizers"))

    def run(infer: str = "", source: str = PROBLEM, **parts: str) -> str:
        folder = tmp_path / "app"
        folder.mkdir(exist_ok=True)
        helper = parts.pop("helper", None)
        if helper is not None:
            (folder / "helper.py").write_text(textwrap.dedent(helper))
        places = {"top": 4, "initialize": 12, "more": 8, "infer": 12}
        given = {"top": "", "initialize": "pass", "more": "", "infer": infer or "pass"} | parts
        filled = {k: textwrap.indent(textwrap.dedent(given[k]).strip(), " " * n).strip() for k, n in places.items()}
        text = source.format(model=str(demo.BASE), **filled) if "{infer}" in source else source
        (folder / "app.py").write_text(textwrap.dedent(text))
        app = App(str(folder))
        app.load()
        app.initialize()
        return concurrency.why_not(app)

    yield run
    for name in set(sys.modules) - before:
        if name == "app" or name.startswith(("vllm", "helper")):
            del sys.modules[name]


CLEAN = {
    "nothing": "",
    "chat": """
        chat = [{"role": "user", "content": prompt}]
        text = self.tokenizer.apply_chat_template(chat, chat_template="x", tokenize=False)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        prompt = self.tokenizer.decode(ids, skip_special_tokens=True)
    """,
    "own parameters": "self_params = SamplingParams(max_tokens=int(inputs.get('n', 3)), temperature=0.5)",
    "own list": "parts = []\nfor word in prompt.split():\n    parts.append(word.upper())\nprompt = ' '.join(parts)",
    "own dict": "found = {}\nfound['a'] = [prompt]\nfound['a'].append('b')\nprompt = found['a'][0]",
    "plain attribute": "prompt = prompt[: self.params.max_tokens * 100] + json.dumps({'a': 1})",
    "closure": "def add(text):\n    return text + prompt\nprompt = add('x')",
    "comprehension": "prompt = ''.join(c for c in prompt if c.isalnum() and not re.match('x', c))",
    "environment read": "prompt += os.environ.get('SUFFIX', '') + os.getenv('OTHER', '')",
    "copied parameters": "params = copy.deepcopy(self.params)\nparams.max_tokens = 2",
    "time and print": "began = time.time()\nprint(f'took {time.time() - began:.2f} s for {prompt}')",
    "file of its own": "path = f'/tmp/{uuid.uuid4().hex}.txt'\nopen(path, 'w').write(prompt)\nos.remove(path)",
    "try": "try:\n    n = int(prompt)\nexcept ValueError as error:\n    n = len(str(error))\nprompt = str(n)",
    "thread": "box = []\nt = threading.Thread(target=box.append, args=(prompt,))\nt.start()\nt.join()",
    "print to stderr": "import sys\nprint(prompt, file=sys.stderr)",
    "sorted": "prompt = ' '.join(sorted(prompt.split(), key=lambda w: len(w)))",
}


@pytest.mark.parametrize("infer", CLEAN.values(), ids=CLEAN)
def test_an_infer_that_keeps_nothing_is_proved(judge: Judge, infer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # No `infer` is called here: what libraries hold is the same for all of these apps, and is searched for below.
    monkeypatch.setenv("PUNA_PROVED", "1")
    assert judge(infer) == ""


def test_a_table_of_the_apps_may_be_read_in_every_way(judge: Judge) -> None:
    tables = """
        self.words, self.names, self.pair = ['a', 'b'], {'a': 'b'}, ('a', 'b')
        self.stops, self.patterns = frozenset(['a', 'b']), [re.compile('a'), self.params]
    """
    reads = """
        words = []
        for word in self.words:
            words.append(word)
        stops = [stop for stop in self.stops if stop in prompt]
        count = len([1 for pattern in self.patterns])
        first = self.words[0] + self.names['a'] + self.names.get('b', '') + self.pair[1]
        prompt = first.join(words) + ''.join(k + v for k, v in self.names.items()) + ' '.join(self.pair)
    """
    assert judge(reads, initialize=tables) == ""


ABOVE = """
    from vllm import LLM

    class Base:
        def text(self, prompt):
            {keeps}
            return prompt

    class InferlessPythonModel(Base):
        def initialize(self):
            self.llm = LLM(model="x")
        def text(self, prompt):
            return {above}.text(prompt)
        def infer(self, inputs):
            return {{"text": self.text(inputs["prompt"])}}
"""


@pytest.mark.parametrize("above", ["super()", "super(InferlessPythonModel, self)"])
def test_a_method_of_a_parent_is_read_however_it_is_reached(judge: Judge, above: str) -> None:
    assert judge(source=ABOVE.format(keeps="pass", above=above)) == ""
    assert "keeps self.prompt" in judge(source=ABOVE.format(keeps="self.prompt = prompt", above=above))


KEEPS = {
    "attribute": ("self.prompt = prompt", "keeps self.prompt"),
    "attribute by setattr": ("setattr(self, 'prompt', prompt)", "keeps self.prompt"),
    "attribute by __dict__": ("self.__dict__['prompt'] = prompt", "uses self.__dict__"),
    "attribute by vars": ("vars(self)['prompt'] = prompt", "calls vars"),
    "attribute by object": ("object.__setattr__(self, 'prompt', prompt)", "uses object.__setattr__"),
    "attribute of a class": ("type(self).prompt = prompt", "keeps type(...).prompt"),
    "attribute of the named class": ("InferlessPythonModel.prompt = prompt", "keeps InferlessPythonModel.prompt"),
    "attribute by for": ("for self.word in prompt.split(): pass", "keeps self.word"),
    "attribute by with": ("with open('app.py') as self.file: pass", "keeps self.file"),
    "attribute by unpacking": ("first, self.rest = prompt, prompt", "keeps self.rest"),
    "attribute by star": ("first, *self.rest = prompt.split()", "keeps self.rest"),
    "attribute counted": ("self.count += 1", "keeps self.count"),
    "attribute deleted": ("del self.shared", "deletes self.shared"),
    "list": ("self.shared.append(prompt)", "changes self.shared (append)"),
    "list in place": ("self.shared += [prompt]", "keeps self.shared"),
    "list by slice": ("self.shared[:] = [prompt]", "keeps self.shared[...]"),
    "list by another name": ("x = self.shared\nx.append(prompt)", "changes x (append)"),
    "list by another name in place": ("x = self.shared\nx += [prompt]", "changes x"),
    "list in a list": ("x = [self.shared]\nx[0].append(prompt)", "changes x[...] (append)"),
    "list in a dict": ("x = {'a': self.shared}\ny = x.get('a')\ny.append(prompt)", "changes y (append)"),
    "list by or": ("x = None or self.shared\nx.append(prompt)", "changes x (append)"),
    "list by its method": ("put = self.shared.append\nput(prompt)", "changes put (append)"),
    "list by map": ("list(map(self.shared.append, [prompt]))", "changes"),
    "list by its class": ("list.append(self.shared, prompt)", "calls list.append"),
    "list by a comprehension": ("[x.append(prompt) for x in [self.shared]]", "changes x (append)"),
    "list by a lambda": ("(lambda x: x.append(prompt))(self.shared)", "changes x (append)"),
    "list by a thread": ("threading.Thread(target=self.shared.append, args=(prompt,)).start()", "changes"),
    "list by walrus": ("(x := self.shared).append(prompt)", "changes"),
    "list by iter": ("x = max([self.shared], key=len)\nx.append(prompt)", "changes x (append)"),
    "list by getattr": ("getattr(self, 'shared').append(prompt)", "changes getattr(...) (append)"),
    "list by a computed getattr": ("getattr(self, 'sha' + 'red').append(prompt)", "with a name that is not written"),
    "list by a closure": ("x = self.shared\ndef put():\n    x.append(prompt)\nput()", "changes x (append)"),
    "nested dict": ("self.nested['a']['b'] = prompt", "keeps self.nested[...][...]"),
    "nested dict by get": ("self.nested.get('a')['b'] = prompt", "keeps self.nested.get(...)[...]"),
    "nested dict by items": ("for k, v in self.nested.items(): v['b'] = prompt", "keeps v[...]"),
    "shallow copy": ("x = dict(self.nested)\nx['a']['b'] = prompt", "keeps x[...][...]"),
    "spread copy": ("x = {**self.nested}\nx['a']['b'] = prompt", "keeps x[...][...]"),
    "exec": ("exec('self.prompt = prompt')", "calls exec"),
    "eval": ("eval('self.shared.append(prompt)')", "calls eval"),
    "globals": ("globals()['prompt'] = prompt", "calls globals"),
    "seed": ("random.seed(1)", "calls random.seed"),
    "shuffle": ("random.shuffle(self.shared)", "calls random.shuffle"),
    "environment": ("os.environ['PROMPT'] = prompt", "keeps os.environ[...]"),
    "environment by putenv": ("os.putenv('PROMPT', prompt)", "calls os.putenv"),
    "environment by update": ("os.environ.update(PROMPT=prompt)", "calls os.environ.update"),
    "working directory": ("os.chdir('/tmp')", "calls os.chdir"),
    "fixed file": ("open('/tmp/prompt', 'w').write(prompt)", "a name that other calls may have too"),
    "fixed file by mode": ("open('/tmp/prompt', mode='a').write(prompt)", "a name that other calls may have too"),
    "padding side": ("self.tokenizer.padding_side = 'left'", "keeps self.tokenizer.padding_side"),
    "new token": ("self.tokenizer.add_tokens([prompt])", "calls self.tokenizer.add_tokens"),
    "parameters": ("self.params.max_tokens = 2", "keeps self.params.max_tokens"),
    "parameters by another name": ("p = self.params\np.max_tokens = 2", "keeps p.max_tokens"),
    "module": ("json.last = prompt", "keeps json.last"),
    "time's own attribute": ("print.__self__.last = prompt", "uses print.__self__"),
    "thread local": ("self.local.prompt = prompt", "keeps self.local.prompt"),
    "generator": ("next(self.generator)", "gives next"),
    "unknown": ("self.unknown.put(prompt)", "calls self.unknown.put"),
    "print into": ("print(prompt, file=self.unknown)", "gives print"),
    "default": ("prompt = self.helper(prompt)", "changes kept (append)"),
    "cached": ("prompt = cached(prompt)", "calls cached"),
    "decorated": ("prompt = counted(prompt)", "keeps seen[...]"),
    "class attribute": ("self.of_class.append(prompt)", "changes self.of_class (append)"),
    "global name": ("global LAST\nLAST = prompt", "keeps LAST"),
    "global list": ("HISTORY.append(prompt)", "changes HISTORY (append)"),
    "property": ("self.latest", "keeps self.read"),
    "object": ("self.counter.add()", "keeps self.n"),
    "import of what is unknown": ("import antigravity", "imports antigravity"),
    "raised and caught": (
        "try:\n    raise ValueError(self.shared)\nexcept ValueError as e:\n    e.args[0].append(1)",
        "append",
    ),
    "entered": (
        "import contextlib\nwith contextlib.nullcontext(self.shared) as x:\n    x.append(1)",
        "changes x (append)",
    ),
    "annotation": ("def f(x: self.shared.append(prompt)): pass", "annotation that runs code"),
    "match": ("import sys\nsys.modules['x'] = prompt", "keeps sys.modules[...]"),
}
TOP = """
    import functools
    LAST, HISTORY = None, []
    @functools.lru_cache()
    def cached(text): return text
    def count(function):
        seen = {}
        @functools.wraps(function)
        def call(*arguments):
            seen[1] = arguments
            return function(*arguments)
        return call
    @count
    def counted(text): return text
    class Counter:
        n = 0
        def add(self): self.n += 1
    import queue
"""
START = """
    self.shared, self.nested, self.count = [], {"a": {}}, 0
    self.generator, self.local, self.counter = iter([1, 2]), threading.local(), Counter()
    self.unknown = queue.Queue()
"""
MORE = """
    of_class = []
    def helper(self, text, kept=[]):
        kept.append(text)
        return text
    @property
    def latest(self):
        self.read = True
"""


@pytest.mark.parametrize(("infer", "why"), KEEPS.values(), ids=KEEPS)
def test_whatever_keeps_something_of_a_request_is_named(
    judge: Judge, infer: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "app.py").write_text("")
    monkeypatch.chdir(tmp_path / "app")
    found = judge(infer, top=TOP, initialize=START, more=MORE)
    assert found.startswith("app.py:") and why in found


def test_the_same_app_is_proved_without_them(judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "app.py").write_text("")
    monkeypatch.chdir(tmp_path / "app")
    assert judge("prompt = prompt + str(self.count) + self.nested['a'].get('x', '')", top=TOP, initialize=START) == ""


HELD = {
    "handler": """
        import logging
        class H(logging.Handler):
            def emit(self, record): pass
        logging.getLogger("x").addHandler(H())
    """,
    "patched": "import textwrap\ntextwrap.dedent = lambda text: text",
    "patched engine": "self.llm.generate = lambda *a: None",
    "lines kept": "import logging, io\nlogging.getLogger('y').addHandler(logging.StreamHandler(io.StringIO()))",
}


@pytest.mark.parametrize("initialize", HELD.values(), ids=HELD)
def test_what_a_library_holds_of_the_app_may_run_at_any_time(judge: Judge, initialize: str) -> None:
    import logging
    import textwrap as patched

    before = patched.dedent
    try:
        found = judge("prompt = self.llm.chat(prompt)" if "llm" in initialize else "", initialize=initialize)
    finally:
        patched.dedent = before
        for name in ("x", "y"):
            logging.getLogger(name).handlers.clear()
    assert found


def test_a_library_that_logs_into_a_file_of_its_own_takes_nothing_from_an_app_that_reads_none(
    judge: Judge, tmp_path: Path
) -> None:
    (tmp_path / "prompt.txt").write_text("be short: ")
    handler = logging.FileHandler(tmp_path / "jit.log")  # as flashinfer has one, of its compiler
    logging.getLogger("flashinfer.jit").addHandler(handler)
    try:
        assert judge() == ""
        assert "FileHandler keeps what is logged" in judge(f"""
            with open({str(tmp_path / "prompt.txt")!r}) as file:
                prompt = file.read() + prompt
        """)
    finally:
        logging.getLogger("flashinfer.jit").removeHandler(handler)
        handler.close()


def test_what_validation_has_searched_no_start_searches_again_and_each_reads_again(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = "LLM.seen = staticmethod(lambda text: None)"
    assert "holds code of the app's" in judge(initialize=held)
    monkeypatch.setenv("PUNA_PROVED", "1")
    assert judge(initialize=held) == ""
    assert "keeps self.prompt" in judge("self.prompt = prompt")
