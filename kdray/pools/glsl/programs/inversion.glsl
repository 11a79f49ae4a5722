// A plane that is folded and turned inside out again and again.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 0.25, 0.7);
    p = abs(p - 2.0 * floor(p / 2.0 + 0.5));
    vec2 c = vec2(between(0, 0.5, 1.1), between(1, 0.4, 1.0)) + 0.08 * sin(0.5 * iTime);
    float glow = 0.0, low = 9.0;
    for (int k = 0; k < 9; k++) {
        p = abs(p) / max(dot(p, p), 0.02) - c;
        glow += exp(-3.0 * abs(dot(p, p) - 0.6));
        low = min(low, length(p));
    }
    colour = vec4(palette(0.25 * glow) * (0.4 + 0.3 * glow) * mix(1.0, low + 0.2, random(2)), 1);
}
