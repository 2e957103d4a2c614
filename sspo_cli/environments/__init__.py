"""Multi-turn tasks: environments that answer the policy's turns. Text in, text out, no torch.

How `rollout.episodes.play` drives an environment (`environment.Environment`):

1. Start what it needs before golds are loaded, once for the run: `Sandbox(limits)` for code-acting, nothing for the
   calculator. Entering the sandbox raises UserError where programs cannot be confined. Then
   `CodeActEnvironment(sandbox, checker, limits)` or `CalculatorEnvironment(checker, limits)`.
2. Render the prompt of `environment.system_prompt` (None: no system turn) and `problem.question`.
   `open(problem, seed)` begins one episode a completion; `seed` is that of its random numbers.
3. Sample a turn for every live episode, with the strings of `environment.stop`. A turn ends behind the first stop string,
   which belongs to it, at an end-of-sequence token, or at its token limit. Its text is decoded without special tokens, with
   what the chat template opened of that turn (`<think>`) in front. Token ids are kept as sampled and never encoded again.
4. `step([(episode, text), …])` with the turns of all live episodes at once; what runs code runs at the same time. It
   returns for each what the policy reads next, to be encoded without special tokens (`split_special_tokens=True`: a
   program can print `<|im_end|>`) between the bridges of the chat template, all with mask 0; or None, when the episode is
   over and has been freed.
5. An episode that has no tokens left for another turn is over too: `close([episode])`. `outcome.ended` is then "tokens".
6. `episode.outcome` and `episode.reward` follow from `episode.turns`; |y_i| counts the tokens of the turns alone.

An episode in progress is saved as its turns, `[asdict(turn) for turn in episode.turns]`, with its problem's id and its
seed, and continued by `open(problem, seed, turns=[Turn(**turn) for turn in saved])`. The recorded answers stand; code
that had run runs again before the next call, only to make the variables again. The same happens inside `step` when the
fork server is lost. If it is lost twice within one step, `step` raises UserError and no episode has taken its turn.
A failure of the sandbox is never a reward; a program's own time-out, crash or lack of memory is an observation.
"""
