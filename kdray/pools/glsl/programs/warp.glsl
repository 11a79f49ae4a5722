// Noise whose place is moved by noise, twice.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 0.6, 2.5);
    vec2 q = vec2(fbm(p + 0.2 * iTime), fbm(p + 5.2));
    vec2 r = vec2(fbm(p + 4.0 * q + 1.7), fbm(p + 4.0 * q + 9.2));
    float value = fbm(p + between(0, 1.0, 4.0) * r);
    colour = vec4(palette(2.0 * value) * (0.5 + length(q) * 0.7) + 0.2 * r.x * ink(1), 1);
}
