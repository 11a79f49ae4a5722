// Clear discs that add or take colour where they overlap.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at);
    bool bright = random(0) < 0.5;
    vec3 sum = bright ? 0.3 * ink(1) : vec3(0.7) + 0.3 * ink(1);
    for (int k = 0; k < 7; k++) {
        vec2 centre = vec2(between(k + 10, -1.0, 1.0),
            mod(between(k + 20, 0.0, 2.4) + iTime * between(k + 30, 0.1, 0.4), 2.4) - 1.2);
        float far = length(p - centre) / between(k + 40, 0.2, 0.7);
        float cover = inside(far - 1.0, 0.15) * mix(1.0, 0.3 + 0.7 * far * far, random(2));
        sum = bright ? sum + 0.6 * cover * ink(k + 50) : sum * mix(vec3(1), 0.3 + 0.7 * ink(k + 50), cover);
    }
    colour = vec4(sum, 1);
}
