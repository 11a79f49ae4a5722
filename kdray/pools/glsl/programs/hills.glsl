// Layers of hills before a sun.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = turn(0.3 * (random(0) - 0.5)) * centred(at);
    vec3 sum = mix(ink(1), ink(2), clamp(0.5 + 0.5 * p.y, 0.0, 1.0));
    vec2 sun = vec2(between(3, -0.7, 0.7), between(4, 0.0, 0.7));
    sum = mix(sum, mix(vec3(1), ink(5), 0.4), inside(length(p - sun) - between(6, 0.12, 0.4), 0.08));
    for (int k = 0; k < 4; k++) {
        float s = float(k), rough = between(7, 0.8, 2.5);
        float crest = 0.45 - 0.35 * s + between(8, 0.3,
            0.8) * (fbm(vec2(p.x * rough + 31.0 * s + 0.2 * iTime * (s + 1.0), 9.0 * random(9))) - 0.5) * 2.0;
        vec3 own = mix(ink(2), ink(10), (s + 1.0) / 4.0) * (1.0 - 0.15 * (crest - p.y));
        sum = mix(sum, own, inside(p.y - crest, 0.08));
    }
    colour = vec4(sum, 1);
}
