"""What a model is beside its tensors: its window, its settings of generation.

Files of released weights say it; checkpoints carry it on, with what training
added, and an export writes it.
"""

import os

from longjax import checkpoint, errors, storage, weights
from longjax.data import chat
from longjax.data import tokenizer as tokenizers
from longjax.weights import tensor_files

GENERATION = 'generation_config.json'
DEFAULT_WINDOW = 2048  # transformers' own, where nothing is known


def read(path, source=None) -> dict:
  """What weights say of themselves, as the metadata of a checkpoint keeps it.

  Args:
    path: see weights.FORMATS.
    source: its TensorSource, if it is known.

  Returns:
    window: tokens that the model was trained for, 0 if that is not known;
    generation: the content of generation_config.json, or None;
    family: a key of families.FAMILIES, if it is not llama.
  """
  if (source := source or weights.find(path)) is None:
    metadata = checkpoint.metadata(path)
    kept = {k: metadata[k] for k in ('family',) if k in metadata}
    generation = metadata.get('generation')
    return dict(window=window(metadata), generation=generation, **kept)
  beside = path if os.path.isdir(path) else os.path.dirname(path)
  file, generation = os.path.join(beside, GENERATION), None
  if os.path.isfile(file):
    generation = tensor_files.load_json(
      storage.inside(os.fspath(beside), GENERATION)
    )
  kept = {} if source.family == 'llama' else dict(family=source.family)
  return dict(window=source.window, generation=generation, **kept)


def tokenizer_digest(path) -> str | None:
  """The digest of the tokenizer of weights; None if it is not known.

  A checkpoint has recorded it; other weights have it beside them.
  """
  if weights.find(path) is None:
    return checkpoint.metadata(path).get('tokenizer')
  try:
    return tokenizers.load(path).digest
  except errors.InputError:  # there is none
    return None


def check_tokenizer(path, tokenizer: tokenizers.Tokenizer, config):
  """InputError if weights were trained with another tokenizer.

  Args:
    path: of the weights.
    config: `data.tokenizer` and `data.tokenizer_may_differ` are read.
  """
  if config.data.tokenizer_may_differ:
    return
  theirs = tokenizer_digest(path)
  if theirs not in (None, tokenizer.digest) and not _is_alike(
    path, theirs, tokenizer
  ):
    raise errors.InputError(
      f'the tokenizer {config.data.tokenizer or "beside the weights"} (digest '
      f'{tokenizer.digest[:12]}) is not that of the weights {path} (digest '
      f'{theirs[:12]}); use theirs, or set --config.data.tokenizer_may_differ '
      'to train or evaluate with another'
    )


def _is_alike(path, digest: str, tokenizer) -> bool:
  """Whether the tokenizer beside weights, if it is theirs, gives these ids."""
  try:
    beside = tokenizers.load(path)
  except errors.InputError:
    return False
  return beside.digest == digest and tokenizers.are_alike(beside, tokenizer)


def window(metadata) -> int:
  """Tokens that the model of a checkpoint is for; 0 if that is not known.

  The longest of what the weights were released for, what they were trained on
  and what their rope is scaled for. Lengths of evaluations say nothing.
  """
  config = metadata.get('config', {})
  data, rope = config.get('data', {}), metadata['model']['rope']
  lengths = [metadata.get('window') or 0]
  stages = data.get('curriculum') or [
    (1, config.get('train', {}).get('seq_len', 0))
  ]
  lengths += [int(length) for _, length in stages]
  positions = data.get('positions', {})
  if positions.get('kind', 'plain') != 'plain':
    lengths.append(positions.get('target', 0))
  scaled = rope.get('scaling', 'none') != 'none'
  # The factor of a longrope that was read is made from its temperature, and
  # that of Llama 3.2, 32, is not of its window of 131,072.
  other = rope.get('scaling') in ('longrope', 'llama3')
  if scaled and not (other and max(lengths)):
    length = rope.get('original_length', 0) * rope.get('factor', 1)
    lengths.append(round(length))
  return max(lengths)


def generation(metadata, tokenizer: tokenizers.Tokenizer | None) -> dict:
  """What generation_config.json holds.

  Args:
    metadata: of the checkpoint.

  Returns:
    What the weights were released with. A model that was trained since also
    stops where its own documents and answers ended.
  """
  found = metadata.get('generation')
  if found is None:
    found = {'_from_model_config': True}
    if tokenizer:
      special = dict(bos=tokenizer.bos, eos=tokenizer.eos, pad=tokenizer.pad)
      found |= {f'{k}_token_id': i for k, i in special.items() if i is not None}
  sources = metadata.get('config', {}).get('data', {}).get('sources', {})
  if not tokenizer or not sources:
    return found
  released = found.get('eos_token_id', tokenizer.eos)
  ends = list(released) if isinstance(released, list) else [released]
  for settings in sources.values():
    ends += trained_ends(settings, tokenizer)
  ends = [i for i in dict.fromkeys(ends) if i is not None]
  if ends:
    found = found | dict(eos_token_id=ends[0] if len(ends) == 1 else ends)
  return found


def trained_ends(settings, tokenizer: tokenizers.Tokenizer) -> list[int | None]:
  """The ids with which a source's documents, or its answers, end.

  Args:
    settings: of a source, in data.sources.
  """
  template = settings.get('template', '')
  if settings.get('kind') != 'chat' and not template:
    return [tokenizer.document_end]
  try:
    return [
      tokenizer.token_to_id(
        chat.end(tokenizer, template or chat.FROM_TOKENIZER)
      )
    ]
  except errors.InputError:  # a template of which the tokenizer knows nothing
    return [tokenizer.eos]
