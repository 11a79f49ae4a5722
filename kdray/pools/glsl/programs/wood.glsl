// Growth rings with grain, cut at an angle.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at) * turn(TAU * random(0)) * between(1, 0.6, 1.6) + between(2, -1.5, 1.5);
    p.y *= between(3, 0.15, 0.8);
    float far = length(p) + 0.25 * noise(3.0 * p + iTime) + 0.1 * fbm(vec2(2.0, 14.0) * p);
    float ring = fract(far * between(4, 3.0, 7.0));
    ring = smoothstep(0.0, 0.7, ring) * (1.0 - smoothstep(0.8, 1.0, ring));
    float grain = noise(vec2(4.0, 50.0) * p);
    vec3 pale = mix(vec3(0.85, 0.65, 0.4), ink(5), 0.5);
    colour = vec4(pale * mix(1.0, 0.45, ring) * (0.8 + 0.3 * grain), 1);
}
