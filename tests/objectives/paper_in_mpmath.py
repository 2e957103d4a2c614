"""The paper's formulas, written literally as functions of ρ in 50 digits, without any code of the package."""

from mpmath import atan, exp, fsum, log, mp, mpf, sqrt

mp.dps = 50


def sigma(x):
    return 1 / (1 + exp(-x))


# Each gate returns f(ρ; Â) and its derivative f'(ρ; Â) in closed form, derived by hand.


def clip(rho, advantage, *, eps_low, eps_high, clip_space="ratio"):
    """Evaluate the clip gate, eq. (1)."""
    low, high = (exp(-eps_low), exp(eps_high)) if clip_space == "log" else (1 - eps_low, 1 + eps_high)
    if advantage > 0:
        return min(rho, high), mpf(rho < high)
    return max(rho, low), mpf(rho > low)


def sigmoid(rho, advantage, *, tau_neg, tau_pos):
    """Evaluate the sigmoid gate, eqs. (9), (13)."""
    tau = tau_pos if advantage > 0 else tau_neg
    g = sigma(tau * (rho - 1))
    return g * 4 / tau, 4 * g * (1 - g)


def expsig(rho, advantage, *, tau_neg, tau_pos):
    """Evaluate the expsig gate, eq. (18)."""
    tau = tau_pos if advantage > 0 else tau_neg
    g = sigma((rho - 1) / tau)
    f = exp(4 * tau * g - 2 * tau)
    return f, f * 4 * g * (1 - g)


def expatan(rho, advantage, *, tau_neg, tau_pos):
    """Evaluate the expatan gate, eq. (19)."""
    tau = tau_pos if advantage > 0 else tau_neg
    f = exp(tau * atan((rho - 1) / tau))
    return f, f / (1 + ((rho - 1) / tau) ** 2)


def gumbel(rho, advantage):
    """Evaluate the Gumbel gate, eq. (20)."""
    f = exp(-exp(-(rho - 1)) + 1)
    return f, f * exp(-(rho - 1))


def atanlog(rho, advantage, *, tau_neg, tau_pos):
    """Evaluate the atanlog gate, eqs. (16), (21)."""
    tau = tau_pos if advantage > 0 else tau_neg
    f = exp(tau * atan(log(rho) / tau))
    return f, f / rho / (1 + (log(rho) / tau) ** 2)


def siglog(rho, advantage, *, tau_neg, tau_pos):
    """Evaluate the siglog gate, eq. (22)."""
    tau = tau_pos if advantage > 0 else tau_neg
    g = sigma(log(rho) / tau)
    f = exp(4 * tau * g - 2 * tau)
    return f, f * 4 * g * (1 - g) / rho


# Gates beyond the paper. If only a gradient is published, f has this gradient and the value of the released code.


def cispo(rho, advantage, *, eps_high):
    """Evaluate CISPO's gate, arXiv 2506.13585, eq. (4): f'(ρ) ρ = min(ρ, 1 + ε); above the cap f is its integral over log ρ."""
    cap = 1 + eps_high
    return (rho, mpf(1)) if rho <= cap else (cap + cap * log(rho / cap), cap / rho)


def pspo(rho, advantage, *, alpha):
    """Evaluate PSPO's gate, arXiv 2509.21282: the ratio of (1 - α) π + α π_old to π_old."""
    return (1 - alpha) * rho + alpha, 1 - alpha


def cegppo(rho, advantage, *, eps_low, eps_high, beta_low, beta_high):
    """Evaluate CE-GPPO's gate, arXiv 2509.20712: β (1 ± ε) ρ / sg(ρ) outside the range."""
    if advantage > 0 and rho > 1 + eps_high:
        return beta_high * (1 + eps_high), beta_high * (1 + eps_high) / rho
    if advantage <= 0 and rho < 1 - eps_low:
        return beta_low * (1 - eps_low), beta_low * (1 - eps_low) / rho
    return rho, mpf(1)


# Each aggregation returns S_i, ∂S_i/∂d_it for every token, and the token weights w_it.


def arithmetic(gate, rhos, advantage, options):
    """Average the gated ratios arithmetically, eqs. (2), (8), (12)."""
    pairs = [gate(rho, advantage, **options) for rho in rhos]
    w = [derivative * rho for rho, (_, derivative) in zip(rhos, pairs, strict=True)]
    return fsum(f for f, _ in pairs) / len(rhos), [weight / len(rhos) for weight in w], w


def geometric(gate, rhos, advantage, options):
    """Average the gated ratios geometrically, eqs. (7), (11), (14)."""
    pairs = [gate(rho, advantage, **options) for rho in rhos]
    product = mpf(1)
    for f, _ in pairs:
        product *= f
    total = product ** (mpf(1) / len(rhos))
    w = [derivative / f * rho for rho, (f, derivative) in zip(rhos, pairs, strict=True)]
    return total, [total * weight / len(rhos) for weight in w], w


def sequence(gate, rhos, advantage, options):
    """Gate the ratio of the whole sequence, eqs. (5), (6)."""
    product = mpf(1)
    for rho in rhos:
        product *= rho
    s = product ** (mpf(1) / len(rhos))
    f, derivative = gate(s, advantage, **options)
    return f, [derivative * s / len(rhos)] * len(rhos), [derivative / f * s] * len(rhos)


def standardized(rewards, ddof):
    """Standardize the rewards of a group, eq. (4)."""
    mean = fsum(rewards) / len(rewards)
    std = sqrt(fsum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - ddof))
    return [(reward - mean) / std for reward in rewards]
