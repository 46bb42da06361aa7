"""PeaPOD (arXiv 2407.05033): a language model that names items, with a soft prompt for each person, distilled from the people nearest to them.

    u     = what the items that a person has chosen sum to         # factors of who chose what (baselines/counts.py)
    P(u)  = neighbours: attention over the nearest people | pool: a weighted pool | own: of u alone | profile: of E(a text about them)
          | task | none
    text  = [the task's vectors; P(u); a sentence with codes]      # models/personal_prompts.py
    lm    = update(−mean log p(the code's digits, or the words | text))     # retrieval, ranking and explanation by weight

The learning and the search are those of systems/knowledge.py. u is made of the items before what is asked for, in training too.
"""

from lpt_jax.personal_writer import PersonalWriter
from lpt_jax.profile_prompts import ProfilePrompts
from lpt_jax.run import Run
from lpt_jax.systems import knowledge
from lpt_jax.systems.knowledge import STEPS as STEPS
from lpt_jax.systems.knowledge import TRAINS as TRAINS
from lpt_jax.systems.knowledge import export as export
from lpt_jax.systems.knowledge import recommend as recommend
from lpt_jax.systems.knowledge import schedule as schedule
from lpt_jax.systems.knowledge import tell as tell
from lpt_jax.systems.knowledge import test as test

SAME = (*knowledge.SAME, "personal")  # of begin_from


def build(run: Run) -> PersonalWriter:
    """The model of a run, as its config names it; it is loaded when it is needed."""
    return (ProfilePrompts if run.config.personal.kind == "profile" else PersonalWriter)(run)
