"""Environments of multi-turn tasks, which answer the policy's turns. Text in, text out; imports no torch.

`rollout.episodes.play` drives an environment (`environment.Environment`) as follows:

1. Start the sandbox once for the run, before gold answers are loaded: `Sandbox(limits)` for code-acting, nothing for the
   calculator. Entering the sandbox raises UserError if programs cannot be confined. Then create
   `CodeActEnvironment(sandbox, checker, limits)` or `CalculatorEnvironment(checker, limits)`.
2. Render the prompt from `environment.system_prompt` (None: no system turn) and `problem.question`.
   `open(problem, seed)` begins the episode of one completion; `seed` is for its random numbers.
3. Sample a turn for every live episode, with the stop strings `environment.stop`. A turn ends after the first stop string,
   which is part of it, at an end-of-sequence token, or at its token limit. Its text is decoded without special tokens and
   begins with the text that the chat template opened the turn with (`<think>`). Token ids are kept as sampled and are never
   encoded again.
4. Call `step([(episode, text), …])` with the turns of all live episodes; their code runs in parallel. For each episode it
   returns the text that the policy reads next, or None if the episode is over and freed. The text is encoded without
   special tokens (`split_special_tokens=True`, because a program can print `<|im_end|>`) between the bridges of the chat
   template. All these tokens have mask 0.
5. Call `close([episode])` for an episode without tokens left for another turn; its `outcome.ended` is then "tokens".
6. Read `episode.outcome` and `episode.reward`, which follow from `episode.turns`; |y_i| counts only the tokens of turns.

An episode in progress is saved as its turns, `[asdict(turn) for turn in episode.turns]`, with its problem's id and its
seed. `open(problem, seed, turns=[Turn(**turn) for turn in saved])` continues it: the recorded answers stay, and code of
earlier turns runs again before the next call to restore the variables. The same happens within `step` if the fork server
is lost. If it is lost twice within one step, `step` raises UserError and no episode has taken its turn. A failure of the
sandbox never affects a reward; a program's own time-out, crash or lack of memory is an observation.
"""
