"""Environments, which answer the policy's turns in multi-turn tasks. Text in, text out; imports no torch.

`rollout.episodes.play` uses an environment (`environment.Environment`) as follows:

1. Start the sandbox once for the run, before gold answers are loaded: `Sandbox(limits)` for code-acting, nothing for the
   calculator. Entering the sandbox raises UserError if programs cannot be confined. Then create
   `CodeActEnvironment(sandbox, checker, limits)` or `CalculatorEnvironment(checker, limits)`.
2. Render the prompt from `environment.system_prompt` (None: no system turn) and `problem.question`.
   `open(problem, seed)` begins the episode of one completion; `seed` seeds the random numbers of its programs.
3. Sample a turn for every live episode, with the stop strings `environment.stop`. A turn ends after the first stop string,
   at an end-of-sequence token, or at its token limit; the stop string is part of the turn. The text of a turn is decoded
   without special tokens and begins with the text (`<think>`) that the chat template may have written. Token ids are stored
   as sampled and are never encoded again.
4. Call `step([(episode, text), …])` with the turns of all live episodes; their code runs in parallel. For each episode it
   returns the text that the policy reads next, or None if the episode is over and freed. The text is encoded without
   special tokens (`split_special_tokens=True`, because a program can print `<|im_end|>`) between the bridges of the chat
   template. All these tokens have mask 0.
5. Call `close([episode])` for an episode without tokens left for another turn; its `outcome.ended` is then "tokens".
6. Read `episode.outcome` and `episode.reward`, which are computed from `episode.turns`. |y_i| counts only tokens of turns.

An episode in progress is saved as its turns, `[asdict(turn) for turn in episode.turns]`, with its problem's id and its
seed. `open(problem, seed, turns=[Turn(**turn) for turn in saved])` continues the episode: recorded answers are kept, and
before the next call the code of earlier turns runs again to restore the variables. `step` does the same if the fork server
is lost. If the server is lost twice within one step, `step` raises UserError and leaves every episode as it was before the
step. A failure of the sandbox never affects a reward. If a program itself times out, crashes or runs out of memory, this is
an observation.
"""
