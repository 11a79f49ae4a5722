// Julia sets.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 z = turn(TAU * random(0)) * centred(at) * between(1, 0.7, 1.4);
    float angle = TAU * random(2) + 0.2 * iTime;
    vec2 c = between(3, 0.72, 0.82) * vec2(cos(angle), sin(angle));
    float n = 0.0;
    for (int k = 0; k < 40 && dot(z, z) < 16.0; k++) {
        z = vec2(z.x * z.x - z.y * z.y, 2.0 * z.x * z.y) + c;
        n += 1.0;
    }
    float smooth_ = n - log2(max(log2(max(dot(z, z), 1.01)), 0.01));
    vec3 inner = ink(4) * (0.4 + 0.6 * length(z));
    colour = vec4(n > 39.5 ? inner : palette(smooth_ * between(5, 0.04, 0.15)), 1);
}
