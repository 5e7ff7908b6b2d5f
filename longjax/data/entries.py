"""Documents to tokens: the entries of a part of a store."""

from collections.abc import Iterator

import numpy as np

from longjax import errors
from longjax.data import chat, duplicates, formats, reading, store

BATCH_CHARS = 1 << 21  # of text tokenized at once
DIGEST_DIGITS = 12  # of a tokenizer, as launch/prepare.py prints them


def of_unit(unit: reading.Unit, tokenizer, place) -> Iterator[store.Entry]:
  """Yields the documents of a unit, tokenized; returns what was left out."""
  tally, signatures = reading.Tally(unit.source), []
  near = unit.settings['duplicates'] == 'near'
  encode = dict(chat=_chats, tokens=_ids).get(unit.settings['kind'], _texts)
  for batch in _batches(reading.read(unit, tally)):
    for text, entry in encode(batch, unit, tokenizer, tally):
      if near:
        signatures.append(duplicates.signature(text))
      yield entry
  if near:
    np.save(place / duplicates.SIGNATURES, np.array(signatures))
  return [tally.as_json()]


def _batches(documents) -> Iterator[list]:
  """Documents in lists of about BATCH_CHARS, to tokenize at once."""
  batch, chars = [], 0
  for document in documents:
    batch.append(document)
    if document.token_document:
      chars += len(document.token_document.ids)
    else:
      chars += len(document.text) or len(str(document.chat))
    if chars >= BATCH_CHARS:
      yield batch
      batch, chars = [], 0
  if batch:
    yield batch


def _texts(batch, unit, tokenizer, tally) -> Iterator[tuple[str, store.Entry]]:
  """Yields (text, entry); counts those that give no tokens."""
  ends = tokenizer.document_start, tokenizer.document_end
  start, end = (
    np.array([i for i in [x] if i is not None], np.int32) for x in ends
  )
  encoded = tokenizer.encode_batch([d.text for d in batch], batch[0].special)
  for document, ids in zip(batch, encoded):
    ids = np.concatenate([start, ids, end])
    if len(ids):
      size = len(document.text.encode('utf-8', 'replace'))
      yield document.text, store.Entry(document.name, unit.source, ids, size)
    else:  # nothing that this tokenizer knows
      tally.short += 1


def _chats(batch, unit, tokenizer, tally) -> Iterator[tuple[str, store.Entry]]:
  """Yields (contents, entry); counts what is no conversation."""
  settings = unit.settings
  for document in batch:
    messages, tools = document.chat
    try:
      ids, mask = chat.encode(
        messages, tokenizer, settings['template'], settings['loss'], tools
      )
    except errors.InputError as error:
      tally.read -= 1
      bad = formats.Unreadable(document.name, f'not a conversation ({error})')
      tally.add(bad, settings['max_bad'])
      continue
    contents = [message['content'] for message in messages]
    size = sum(len(text.encode('utf-8', 'replace')) for text in contents)
    yield (
      '\n'.join(contents),
      store.Entry(document.name, unit.source, ids, size, mask),
    )


def _ids(batch, unit, tokenizer, tally) -> Iterator[tuple[str, store.Entry]]:
  """Yields ('', entry) of ids as they are; InputError for one too large."""
  made_by = unit.settings['tokenizer']
  if made_by and (
    len(made_by) < DIGEST_DIGITS or not tokenizer.digest.startswith(made_by)
  ):
    raise errors.InputError(
      f'source {unit.source!r}: its ids were made with a tokenizer of digest '
      f'{made_by!r}, but data.tokenizer has {tokenizer.digest[:DIGEST_DIGITS]}'
    )
  for document in batch:
    ids, mask, place = document.token_document
    if ids.min() < 0 or ids.max() >= tokenizer.vocab:
      wrong = np.flatnonzero((ids < 0) | (ids >= tokenizer.vocab))
      raise errors.InputError(
        f'source {unit.source!r}: {document.name} has the id {ids[wrong[0]]} '
        f'at token {wrong[0]}, but data.tokenizer has the ids 0 to '
        f'{tokenizer.vocab - 1}; name the tokenizer that made them'
      )
    yield '', store.Entry(document.name, unit.source, ids, 0, mask, place)
