// The Gaussian error linear unit in its tanh form (Hendrycks and Gimpel, arXiv:1606.08415).
float gelu_tanh(float x) {
    const float argument = 0.7978845608028654 * (x + 0.044715 * x * x * x);
    // tanh(a) = 1 − 2 / (exp(2a) + 1); exp overflows to infinity and gives 1, underflows to 0 and gives −1.
    return 0.5 * x * (2.0 - 2.0 / (exp(2.0 * argument) + 1.0));
}
