"""RULER's prompts equal those of NVIDIA's generators, and what they hold.

tests/golden/ruler.json has digests that tests/golden/make_ruler.py made with
the generators themselves, on the words, essays and questions that it invents.
"""

import itertools
import json
import pathlib
import zlib

import numpy as np
import pytest
from eval_cases import SOURCE, TOKENS
from golden import make_ruler

from longjax import hub
from longjax.errors import InputError
from longjax.evals import pieces, prompts, ruler, ruler_data
from longjax.evals.word_lists import Pairs, Words

GOLDEN = pathlib.Path(__file__).parent / 'golden/ruler.json'


class Tokens:
  """A token a word, as make_ruler counts them."""

  document_start = None

  def encode(self, text):
    return np.array(
      [zlib.crc32(t.encode()) >> 1 for t in make_ruler.tokens(text)]
    )

  def encode_batch(self, texts):
    return [self.encode(text) for text in texts]


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  files = {}
  for name in ('squad', 'hotpotqa'):
    files[name] = str(tmp_path_factory.mktemp('data') / f'{name}.json')
    content = getattr(make_ruler, name)()
    pathlib.Path(files[name]).write_text(json.dumps(content))
  words = Words(*(sorted(set(x)) for x in make_ruler.words().values()))
  return prompts.Source(make_ruler.essay(), words, files)


@pytest.mark.parametrize('task', ruler.TASKS)
def test_prompts_are_those_of_the_original(task, source, monkeypatch):
  """To the character, the first three of seed 42, with their answers."""
  for length, wanted in json.loads(GOLDEN.read_text())[task].items():
    spec = prompts.make_spec(
      Tokens(), ruler.TASKS[task], source, int(length), 42
    )
    texts, found = [], []

    def encode(text, prefix, encode=spec.encode, texts=texts):
      texts.append(text + prefix)
      return encode(text, prefix)

    stream = ruler.TASKS[task].stream(spec._replace(encode=encode))
    for sample in itertools.islice(stream, make_ruler.SAMPLES):
      found.append([make_ruler.digest(texts[-1]), [*sample.references]])
      assert len(sample.prompt) + spec.count <= int(length)
    assert found == wanted


def test_pairs_of_words_are_in_the_order_of_the_whole_list():
  words = Words(['ed', 'z', 'a-b'], ['blue', 'blu', 'blue-eyed', 'x'], [])
  whole = {f'{a}-{n}' for a in words.adjectives for n in words.nouns}
  assert [*Pairs(words)] == sorted(whole)


def test_a_length_that_a_list_of_words_cannot_fill_is_refused():
  task = ruler.TASKS['cwe']
  with pytest.raises(InputError, match=r'700 words .* shorter --lengths'):
    prompts.samples(task, TOKENS, SOURCE, 1 << 17, 1, 0)


@pytest.mark.parametrize('content, says', [
  ('', 'is not the file'), ('[1]', 'has no fields'), (None, 'No such file'),
  ('{"data": [1]}', 'is not the file'),
])  # fmt: skip
def test_a_file_that_is_not_the_data_set_is_named(tmp_path, content, says):
  path = tmp_path / 'squad.json'
  if content is not None:
    path.write_text(content)
  with pytest.raises(InputError, match=f'eval.files.squad.*{says}'):
    ruler_data.read('squad', str(path))


def test_questions_may_lie_on_the_hub(tmp_path, monkeypatch):
  (tmp_path / 'd.json').write_text(
    '[{"question": "q", "answer": "a", "context": [["t", ["l"]]]}]'
  )
  local = lambda name, choose: tmp_path / name.rpartition('/')[2]
  monkeypatch.setattr(hub, 'local', local)
  (question,), texts = ruler_data.read('hotpotqa', 'hf://datasets/o/n/d.json')
  assert question == ruler_data.Question('q', ('a',), (0,)) and texts == [
    't\nl'
  ]


def test_text_in_pieces_has_the_ids_of_the_whole():
  """And where a tokenizer joins what is cut, it is encoded whole."""
  text = 'A b. C d! E f? ' * 50 + 'The end.'
  assert pieces.Encoder(TOKENS)(text).tolist() == TOKENS.encode(text).tolist()

  class Joins(Tokens):
    def encode(self, text):
      return np.array([zlib.crc32(t.encode()) >> 1 for t in text.split('! ')])

  encoder = pieces.Encoder(Joins())
  assert encoder(text).tolist() == Joins().encode(text).tolist()
  assert encoder.cut is None
