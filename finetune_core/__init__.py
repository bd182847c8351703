"""Thaw's core: everything that is not Streamlit.

The rooms, in the order data flows: ``config``, ``data``, ``models``, ``training``, ``inspection``, ``runs``,
``evaluation``, ``exporters``, then ``figures`` and the command line. A room may call the rooms before it, never those after it.
"""

from finetune_core.memory import tune_allocator

tune_allocator()
