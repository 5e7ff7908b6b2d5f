"""The base of every config: sizes of the models, and each key with its unit.

A config is a function `get_config()` that starts from `base()` and changes
what its recipe changes. Nothing else may exist: a key that nobody reads is an
error of ours, a key that does not stand here is an error of the caller.
"""

from typing import Any

from ml_collections import ConfigDict

# Architectures. heads, kv_heads, layers are counts; mlp and embed are widths.
LLAMA2 = dict(vocab=32_000, norm_eps=1e-5, tied=False, head_dim=128)
LLAMA1 = LLAMA2 | dict(norm_eps=1e-6)
LLAMA3 = dict(
  vocab=128_256, norm_eps=1e-5, tied=False, head_dim=128, kv_heads=8
)
SMOLLM2 = dict(vocab=49_152, norm_eps=1e-5, tied=True, head_dim=64)

SIZES = dict(
  tiny=dict(
    vocab=384,
    layers=4,
    embed=64,
    mlp=160,
    heads=8,
    kv_heads=4,
    head_dim=16,
    norm_eps=1e-5,
    tied=False,
  ),
  llama2_7b=LLAMA2
  | dict(layers=32, embed=4096, mlp=11_008, heads=32, kv_heads=32),
  llama2_13b=LLAMA2
  | dict(layers=40, embed=5120, mlp=13_824, heads=40, kv_heads=40),
  llama1_7b=LLAMA1
  | dict(layers=32, embed=4096, mlp=11_008, heads=32, kv_heads=32),
  llama1_13b=LLAMA1
  | dict(layers=40, embed=5120, mlp=13_824, heads=40, kv_heads=40),
  llama1_33b=LLAMA1
  | dict(layers=60, embed=6656, mlp=17_920, heads=52, kv_heads=52),
  llama1_65b=LLAMA1
  | dict(layers=80, embed=8192, mlp=22_016, heads=64, kv_heads=64),
  openllama_3b=LLAMA1
  | dict(layers=26, embed=3200, mlp=8640, heads=32, kv_heads=32, head_dim=100),
  # Never released; its shape is that of Code Llama 34B.
  llama2_34b=LLAMA2
  | dict(layers=48, embed=8192, mlp=22_016, heads=64, kv_heads=8),
  llama2_70b=LLAMA2
  | dict(layers=80, embed=8192, mlp=28_672, heads=64, kv_heads=8),
  llama3_8b=LLAMA3 | dict(layers=32, embed=4096, mlp=14_336, heads=32),
  llama3_70b=LLAMA3 | dict(layers=80, embed=8192, mlp=28_672, heads=64),
  llama32_1b=LLAMA3
  | dict(layers=16, embed=2048, mlp=8192, heads=32, head_dim=64, tied=True),
  llama32_3b=LLAMA3
  | dict(layers=28, embed=3072, mlp=8192, heads=24, tied=True),
  smollm2_135m=SMOLLM2
  | dict(layers=30, embed=576, mlp=1536, heads=9, kv_heads=3),
  smollm2_360m=SMOLLM2
  | dict(layers=32, embed=960, mlp=2560, heads=15, kv_heads=5),
  smollm2_1b7=SMOLLM2
  | dict(layers=24, embed=2048, mlp=8192, heads=32, kv_heads=32),
)


def llama31_rope(factor=8.0):
  """RoPE of Llama 3.1 (factor 8) and 3.2 (factor 32)."""
  return dict(
    base=500_000.0,
    scaling='llama3',
    factor=factor,
    original_length=8192,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
  )


def variant(table, name: str):
  """table[name], or an error that lists what a config's argument may be."""
  if name not in table:
    raise ValueError(f'{name!r} is none of {", ".join(table)}')
  return table[name]


def model(size, **rope) -> Any:
  """The model section: an architecture of SIZES and its RoPE fields."""
  return ConfigDict(
    dict(
      **SIZES[size],
      rope=dict(
        base=10_000.0,
        scaling='none',
        factor=1.0,
        original_length=0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        beta_fast=32.0,
        beta_slow=1.0,
        divisors=(),
        xpos=0.0,
      )
      | rope,
      dtype='bfloat16',  # of matmuls; masters are float32, always
      attention='ring',  # a name in longjax.attention.STRATEGIES
      block=512,  # keys per attention block; 2048 fills a TPU best
      ulysses=0,  # devices that exchange heads in hybrid; 0 is the most
      remat='attention',  # a name in longjax.llama.REMAT
      mlp_chunk=0,  # tokens of a row in the feed-forward at once; 0 is all
      # Focused Transformer: longjax/crossbatch.py
      memory=dict(layers=(), rows=(), wrap=False),
      group=0,  # tokens that LongLoRA's training attends to; 0 is all
    )
  )


def base(size='tiny', **rope) -> Any:
  """Every key there is, with its default."""
  return ConfigDict(
    dict(
      name='',  # of the run directory and in the report
      notes=(),  # what a reader of the report must know
      seed=0,
      weights='',  # a path, 'package:...' (data/downloads) or 'random'
      moments=False,  # also those of AdamW, if weights is a longjax run
      model=model(size, **rope),
      mesh=dict(data=1, seq=1),
      # LoRA, longjax/lora.py: factors of these weights of the layers learn, and
      # whole those that have one of these words in their names; nothing else.
      lora=dict(
        rank=0,  # 0: everything learns
        alpha=16.0,  # the product of the factors weighs alpha / rank
        weights=('q', 'k', 'v', 'o'),  # and gate, up, down
        whole=('embedding', 'norm'),
      ),
      data=dict(
        # What to train on, by name; longjax/data/sources.py has the keys:
        # dict(package='name==version', sha256=..., include='glob', ...) or
        # dict(path='directory or file', include='glob', ...).
        sources=dict(),
        tokenizer='',  # '' is the one that came with the weights
        directory='',  # prepared shards; '' is a place in the cache
        # Which documents make up which share of the rows, packed how: see
        # longjax/data/mixture.py. Empty: all documents, end to end.
        mix=dict(),
        # What RoPE is told (longjax/data/positions.py): plain | pose |
        # skipalign | e2llm, and for the last three below which position.
        positions=dict(kind='plain', target=0, chunks=2, window=0),
        # ((share of all steps, tokens of a segment at most), ...): rows are
        # cut into shorter segments, longjax/data/curriculum.py. () is never.
        curriculum=(),
        loss='tokens',  # the mean over tokens | documents (LongAlign)
        layout='zigzag',  # contiguous | zigzag | striped | balanced
        skip_steps=(),  # steps whose batches are passed over
        # Of launch/prepare.py --synthesize, longjax/data/synthetic.py.
        synthesis=dict(
          kind='questions',  # questions (about data.sources) | tables
          endpoint='',  # of a server, 'http://host:8000/v1'; '' is none
          model='',  # its name there; without a server, weights or a run
          key='OPENAI_API_KEY',  # environment variable with the server's key
          template='llama3',  # of chats (data/chat.py), without a server
          record='',  # jsonl of answers, which are not asked for again
          chunk_chars=6000,  # of a document, that a model is shown
          max_tokens=0,  # of a document in a conversation; 0 is all
          parallel=8,  # documents at once
          tables=1000,  # how many
          rows=500,  # of a table
        ),
      ),
      train=dict(
        steps=100,
        batch=8,  # rows of a step
        micro_batches=1,  # parts that a step is computed in
        seq_len=2048,  # tokens of a row
        loss_chunk=1024,  # tokens whose logits exist at once, per device
        # Targets weigh by what a long context brings them, longjax/longce.py:
        # gamma is the most, 0 is all the same; the rest is tokens.
        longce=dict(gamma=0.0, short=4096, stride=1024),
        profile_steps=(),  # to trace into profile/; or send SIGUSR1
      ),
      optim=dict(
        learning_rate=2e-5,
        schedule='cosine',  # cosine | linear | constant
        warmup_steps=0,
        warmup_from=0.0,  # share of the peak at step 0
        min_ratio=0.1,  # share of the peak at the last step
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.1,  # of matrices; never of norms
        clip=1.0,  # global norm
        spike_sigmas=6.0,  # above the mean of the window; 0 admits spikes
        spike_window=128,  # steps
        max_skipped=5,  # steps in a row: not finite, or a spike
      ),
      checkpoint=dict(
        every_steps=100,
        keep=2,  # the newest
        keep_every_steps=0,  # and those at multiples of this
        max_failed=5,  # saves in a row
      ),
      eval=dict(
        sources=dict(),  # held-out documents, as data.sources
        documents=1,  # how many of them
        length=0,  # tokens of each; 0 is no evaluation
        window=0,  # trained window, marked in table and plot
        passkey_lengths=(),  # tokens; () is no passkey
        passkey_depths=(0.1, 0.5, 0.9),
        tasks=(),  # more evaluations: names in longjax/evals/tasks.py
        lengths=(4096,),  # tokens of their prompts and windows
        samples=20,  # prompts of each length
        batch=1,  # prompts read at once
        every_steps=0,  # evaluate while training; 0: before and after only
      ),
    )
  )
