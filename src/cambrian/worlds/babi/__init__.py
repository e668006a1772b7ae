"""Stories with questions, in the manner of the bAbI tasks, whose supporting facts are known.

Two versions. `stories` (module `short`): twelve of the tasks as short stories, one question each, written with tensor operations,
a new one for every key. `tales.generate`: all twenty tasks, told as in the original release, with stories that go on between
questions; `oracle.solve` answers a question from the text alone.
"""

from cambrian.worlds.babi.short import SENTENCES, TASKS, VOCABULARY, WORDS, Stories, stories, text

__all__ = ["SENTENCES", "TASKS", "VOCABULARY", "WORDS", "Stories", "stories", "text"]
