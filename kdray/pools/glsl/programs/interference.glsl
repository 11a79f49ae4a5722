// Waves of a few sources, added.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at);
    float sum = 0.0, waves = between(0, 6.0, 16.0);
    int sources = count(1, 2, 4);
    for (int k = 0; k < sources; k++) {
        vec2 d = p - 1.5 * vec2(2.0 * random(k + 10) - 1.0, 2.0 * random(k + 20) - 1.0);
        sum += sin(waves * length(d) - 2.0 * iTime) / (0.5 + length(d));
    }
    float cut = between(2, 0.1, 1.0);
    colour = vec4(mix(mix(ink(3), ink(4), smoothstep(-cut, cut, sum)), palette(0.3 * sum), random(5)), 1);
}
