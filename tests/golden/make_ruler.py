"""Digests of the prompts that NVIDIA's own RULER generators make.

  git clone https://github.com/NVIDIA/RULER
  python tests/golden/make_ruler.py RULER > tests/golden/ruler.json

Runs scripts/data/synthetic of that checkout in a directory of its own, on
invented words, essays and questions; in place of nltk, wonderwords and a
tokenizer it gets a few lines each. tests/test_ruler.py compares ours.
"""

import hashlib
import json
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile

LENGTHS, SAMPLES, SEED = (2048, 6000), 3, 42
KINDS = dict(
  niah_single_1='noise words numbers 1 1 1',
  niah_single_2='essay words numbers 1 1 1',
  niah_single_3='essay words uuids 1 1 1',
  niah_multikey_1='essay words numbers 4 1 1',
  niah_multikey_2='needle words numbers 1 1 1',
  niah_multikey_3='needle uuids uuids 1 1 1',
  niah_multivalue='essay words numbers 1 4 1',
  niah_multiquery='essay words numbers 1 1 4',
)
NAMES = ('type_haystack', 'type_needle_k', 'type_needle_v', 'num_needle_k',
         'num_needle_v', 'num_needle_q')  # fmt: skip
OTHERS = dict(
  vt=('variable_tracking', dict(num_chains=1, num_hops=4)),
  cwe=('common_words_extraction', dict(freq_cw=30, freq_ucw=3, num_cw=10)),
  fwe=('freq_words_extraction', dict(alpha=2.0)),
  qa_1=('qa', dict(dataset='squad')),
  qa_2=('qa', dict(dataset='hotpotqa')),
)
STUBS = {
  'tokenizer.py': 'import re\nclass T:\n  def text_to_tokens(self, text):\n'
  "    return re.findall(r' ?\\w+|\\s|[^\\w\\s]', text)\n"
  'def select_tokenizer(*_): return T()\n',
  'nltk/__init__.py': '',
  'nltk/tokenize.py': 'import re\ndef sent_tokenize(text):\n'
  "  return [s for s in re.split(r'(?<=[.!?])\\s+', text) if s]\n",
  'wonderwords/__init__.py': 'from wonderwords import random_word\n',
  'wonderwords/random_word.py': 'import pathlib\n'
  'def _get_words_from_text_file(name):\n'
  "  return (pathlib.Path(__file__).parent / name).read_text().split('\\n')\n",
  'tqdm.py': 'def tqdm(x): return x\n',
}


def tokens(text: str) -> list[str]:
  return re.findall(r' ?\w+|\s|[^\w\s]', text)


def words() -> dict[str, list[str]]:
  """Some with blanks, some the beginning of others."""
  rng = random.Random(1)
  syllable = lambda: rng.choice('bdfgklmnprst') + rng.choice('aeiou')
  word = lambda: ''.join(syllable() for _ in range(4))
  nouns = [*{word(): 0 for _ in range(4400)}, 'contact lens', 'eyed', 'ATM']
  adjectives = [*{word(): 0 for _ in range(30)}, 'blue', 'blue-eyed', 'ad hoc']
  return dict(noun=nouns, adjective=adjectives,
              verb=[*{word(): 0 for _ in range(100)}])  # fmt: skip


def essay() -> str:
  rng, nouns = random.Random(2), words()['noun']
  line = lambda: ' '.join(rng.choices(nouns, k=rng.randint(3, 12)))
  return ' '.join(line() + rng.choice('.!?') for _ in range(400))


def squad() -> dict:
  """40 articles of 1 to 5 paragraphs, a question each, some impossible."""
  rng, nouns = random.Random(3), words()['noun']
  line = lambda: ' '.join(rng.choices(nouns, k=rng.randint(5, 40)))
  made = lambda text: dict(
    context=text,
    qas=[dict(question=f'what of {text[:9]}?', is_impossible=n % 3 == 2,
              answers=[dict(text=text[:6]), dict(text=text[:4])])
         for n in range(rng.randint(1, 3))],
  )  # fmt: skip
  return dict(data=[
    dict(paragraphs=[made(line()) for _ in range(rng.randint(1, 5))])
    for _ in range(40)
  ])  # fmt: skip


def hotpotqa() -> list:
  rng, nouns = random.Random(4), words()['noun']
  line = lambda: ' '.join(rng.choices(nouns, k=rng.randint(5, 20))) + '.'
  document = lambda: [rng.choice(nouns), [line(), ' ' + line()]]
  return [
    dict(question=f'who {i}?', answer=f'a{i}',
         context=[document() for _ in range(10)])
    for i in range(30)
  ]  # fmt: skip


def digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def generate(place: pathlib.Path, task: str, length: int) -> list:
  """[digest of the prompt, right answers] of the samples of a task."""
  script, options = OTHERS.get(task) or (
    'niah', dict(zip(NAMES, KINDS[task].split()))
  )  # fmt: skip
  constants: dict = {}
  exec((place / 'synthetic/constants.py').read_text(), constants)
  form = constants['TASKS'][script]
  command = [sys.executable, str(place / f'synthetic/{script}.py')]
  options = options | dict(
    save_dir=place / 'out', save_name=task, tokenizer_path='-',
    tokenizer_type='hf', max_seq_length=length, num_samples=SAMPLES,
    tokens_to_generate=form['tokens_to_generate'], random_seed=SEED,
    template=form['template'] + form['answer_prefix'],
  )  # fmt: skip
  command += [f'--{name}={value}' for name, value in options.items()]
  run = subprocess.run(
    command, capture_output=True, text=True, timeout=100, check=False,
    env=dict(PYTHONPATH=str(place)),
  )  # fmt: skip
  if run.returncode:
    raise SystemExit(run.stderr)
  lines = (place / f'out/{task}/validation.jsonl').read_text().splitlines()
  made = map(json.loads, lines)
  return [[digest(x['input'] + x['answer_prefix']), x['outputs']] for x in made]


def main():
  with tempfile.TemporaryDirectory() as name:
    place = pathlib.Path(name)
    shutil.copytree(
      pathlib.Path(sys.argv[1]) / 'scripts/data', place, dirs_exist_ok=True
    )
    for file, text in STUBS.items():
      (place / file).parent.mkdir(exist_ok=True)
      (place / file).write_text(text)
    for kind, found in words().items():
      (place / f'wonderwords/{kind}list.txt').write_text('\n'.join(found))
    json_files = place / 'synthetic/json'
    contents = {
      'PaulGrahamEssays': dict(text=essay()), 'squad': squad(),
      'hotpotqa': hotpotqa(), 'english_words': {},
    }  # fmt: skip
    for file, content in contents.items():
      (json_files / f'{file}.json').write_text(json.dumps(content))
    found = {
      task: {length: generate(place, task, length) for length in LENGTHS}
      for task in [*KINDS, *OTHERS]
    }
  lines = (f' {json.dumps(k)}: {json.dumps(v)}' for k, v in found.items())
  print('{\n' + ',\n'.join(lines) + '\n}')


if __name__ == '__main__':
  main()
